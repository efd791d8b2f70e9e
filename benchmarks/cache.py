"""How long does decoding small JPEGs into the cache take, and how long reopening them?

python benchmarks/cache.py --data-root cifar10/

Decodes a folder tree of CIFAR-10's size into an empty cache, then loads it again twice, which must find it there.
Reopening looks at the size and times of every file, so that a changed file is noticed.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from common import add_data_root, arguments, cifar, seconds, verdict

DECODE_S, REOPEN_S = 60.0, 1.0


def main() -> None:
    parser = arguments(__doc__)
    add_data_root(parser)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        cache = Path(folder)
        decode = seconds(lambda: cifar(args.data_root, cache))
        reopen = min(seconds(lambda: cifar(args.data_root, cache)) for _ in range(args.turns))
        data = cifar(args.data_root, cache)
        count = data.train.count + data.test.count
    print(f"{count:,} images of {data.shape}")
    print(f"  decode {decode:7.2f} s (target {DECODE_S:.0f} s: {verdict(decode, DECODE_S, at_least=False)})")
    print(f"  reopen {reopen:7.2f} s (target {REOPEN_S:.0f} s: {verdict(reopen, REOPEN_S, at_least=False)})")


if __name__ == "__main__":
    main()

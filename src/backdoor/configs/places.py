"""Where the YAML files of conf/ lie."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder that holds config.yaml, absolute.

    A wheel carries it inside the package (`backdoor/conf`); a checkout, and with it an editable
    install, keeps it at the top, where people edit it.

    Raises:
        FileNotFoundError: neither is there, so the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "conf", package.parents[1] / "conf")
    for place in places:
        if (place / "config.yaml").is_file():
            return place
    raise FileNotFoundError(f"no config.yaml in {' or '.join(map(str, places))}: reinstall the package")

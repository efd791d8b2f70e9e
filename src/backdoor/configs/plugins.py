"""Attacks, defenses and other choices of installed packages: entry points of the group `backdoor.conf`.

A package that writes in its pyproject.toml

    [project.entry-points."backdoor.conf"]
    mine = "mypackage.conf"

and has `mypackage/conf/attack/ghost.yaml` adds `attack=ghost`: on the command line, in sweeps, in `backdoor.list` and
in error messages. Its choices come after this package's own: a name that is taken stays what it is.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from backdoor.errors import UserError

GROUP = "backdoor.conf"


@cache
def package_dirs() -> dict[str, Path]:
    """Name of an entry point -> its folder of YAML files. No package is imported: that could take seconds.

    Raises:
        UserError: an entry point whose folder is not there.
    """
    found = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        top, *rest = point.value.split(".")
        spec = find_spec(top)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        folder = next((path for place in places if (path := Path(place).joinpath(*rest)).is_dir()), None)
        if folder is None:
            owner = point.dist.name if point.dist is not None else point.name
            raise UserError(
                f"package {owner}: its entry point {point.name} = {point.value} ({GROUP}) names no folder; expected "
                "package.folder with attack/, defense/, ... in it; mend or uninstall the package"
            )
        found[point.name] = folder
    return found


class PackageConfigs(SearchPathPlugin):
    """Makes Hydra look into the packages' folders, after all others."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them."""
        for name, folder in package_dirs().items():
            search_path.append(provider=name, path=f"file://{folder}")


def register() -> None:
    """Tell Hydra; once is enough, more does no harm."""
    Plugins.instance().register(PackageConfigs)

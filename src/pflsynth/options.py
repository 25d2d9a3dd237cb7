"""Arguments and options that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pflsynth.errors import UsageError

if TYPE_CHECKING:
    from pflsynth.evaluation.feature_metrics import FeatureFiles
    from pflsynth.networks.weights import FeatureFile

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="federation.toml, or a hospital's site.toml")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the config")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="folder that holds the sites' data folders")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout, texts on stderr")]
Force = Annotated[bool, typer.Option("--force", help="replace what exists")]
RunFolder = Annotated[Path, typer.Option("--run", help="run folder")]
PreparedOrRuns = Annotated[Path | None, typer.Option("--prepared", help="folder of prepared data; default: the run's")]
Device = Annotated[str | None, typer.Option("--device", help="torch device; default: the run's")]
Lpips = Annotated[
    Path | None, typer.Option("--lpips", metavar="FILE", help="compute LPIPS too: AlexNet's weights, which you provide")
]
LpipsSha256 = Annotated[str | None, typer.Option("--lpips-sha256", metavar="HEX", help="SHA-256 of that file")]
LpipsHeads = Annotated[
    Path | None, typer.Option("--lpips-heads", metavar="FILE", help="LPIPS's linear heads, if --lpips lacks them")
]
LpipsHeadsSha256 = Annotated[
    str | None, typer.Option("--lpips-heads-sha256", metavar="HEX", help="SHA-256 of that file")
]
Fid = Annotated[
    Path | None, typer.Option("--fid", metavar="FILE", help="compute FID too: a feature network, which you provide")
]
FidSha256 = Annotated[str | None, typer.Option("--fid-sha256", metavar="HEX", help="SHA-256 of that file")]


def feature_files(
    lpips: tuple[Path | None, str | None],
    lpips_heads: tuple[Path | None, str | None],
    fid: tuple[Path | None, str | None],
) -> FeatureFiles:
    """What the options of LPIPS and FID name, each a file and its SHA-256.

    Raises:
        UsageError: a file without its SHA-256, or the reverse, or heads without AlexNet's weights; a file that is not
            there and has no SHA-256 is told of as such.
    """
    from pflsynth.evaluation.feature_metrics import FeatureFiles

    if lpips_heads[0] is not None and lpips[0] is None:
        raise UsageError("--lpips-heads is given without --lpips; name AlexNet's weights too")
    return FeatureFiles(
        _feature_file("--lpips", *lpips), _feature_file("--lpips-heads", *lpips_heads), _feature_file("--fid", *fid)
    )


def _feature_file(option: str, path: Path | None, sha256: str | None) -> FeatureFile | None:
    from pflsynth.files import sha256_of_file
    from pflsynth.networks.weights import FeatureFile

    if path is None:
        if sha256 is not None:
            raise UsageError(f"{option}-sha256 is given without {option}; name the file that has this SHA-256")
        return None
    if sha256 is None:
        if not path.is_file():
            raise UsageError(f"{option} {path}: there is no such file")
        raise UsageError(
            f"{option} {path}: its SHA-256 is {sha256_of_file(path)}; compare it with the one that the file's source "
            f"publishes, and if they are equal, give it as {option}-sha256"
        )
    return FeatureFile(path, sha256)

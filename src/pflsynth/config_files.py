"""Read ``federation.toml`` and ``site.toml``: ``extends``, ``--set a.b=c``, errors in one sentence; write TOML."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from pflsynth.config import FederationConfig
from pflsynth.errors import UsageError
from pflsynth.site_file import SiteFile

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class LoadedConfig:
    """A validated configuration and the sites whose data is on this machine.

    Attributes:
        federation: the agreement and this machine's local keys.
        sites: all sites of a ``federation.toml``, or the one of a ``site.toml``.
        path: the file.
        own: the ``site.toml``, its paths made absolute; ``None`` for a ``federation.toml``.
    """

    federation: FederationConfig
    sites: tuple[str, ...]
    path: Path
    own: SiteFile | None = None


def load_config(path: Path, overrides: Sequence[str] = (), data_root: Path | None = None) -> LoadedConfig:
    """Read a ``federation.toml`` (all its sites) or a ``site.toml`` (one site of the agreement that it names).

    Args:
        path: the file.
        overrides: ``key.sub=value`` texts, applied to the federation; values are TOML, or plain text.
        data_root: folder of the sites' data, in place of the file's.

    Raises:
        UsageError: naming file, key and value found, and what is allowed.
    """
    content = _read_toml(path)
    if "federation" not in content:
        federation = _federation(path, overrides, data_root)
        return LoadedConfig(federation, federation.site_names, path)
    site = _validate(SiteFile, content, path).within(path.parent)
    federation = _federation(site.federation, overrides, None)
    if site.site not in federation.sites:
        raise UsageError(
            f'{path}: site "{site.site}" is not in {site.federation}, which has {", ".join(federation.site_names)}'
        )
    data = data_root / site.site if data_root is not None else site.data
    own = {key: getattr(site, key) for key in ("layout", "contrast_names") if getattr(site, key) is not None}
    here = federation.sites[site.site].model_copy(update={"data": data.absolute(), **own})
    machine = ("device", "workers", "threads", "compile", "checkpoint_activations")
    local = {key: getattr(site, key) for key in machine if getattr(site, key) is not None}
    federation = federation.model_copy(update={"sites": {**federation.sites, site.site: here}, **local})
    return LoadedConfig(federation, (site.site,), path, site)


def toml_bytes(content: Mapping[str, Any]) -> bytes:
    """A table as TOML, without the keys whose value is ``None``: TOML has no such value, and they are defaults."""
    return tomli_w.dumps(_without_none(content)).encode()


def _without_none(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_none(value) for key, value in content.items() if value is not None}
    return content


def _federation(path: Path, overrides: Sequence[str], data_root: Path | None) -> FederationConfig:
    content = _extended(path, ())
    for override in overrides:
        _set(content, override)
    content.setdefault("data_root", ".")
    for key in ("data_root", "perceptual_weights"):
        if key in content:
            content[key] = str((path.parent / _path_text(key, content[key], path)).absolute())
    if data_root is not None:
        content["data_root"] = str(data_root.absolute())
    return _validate(FederationConfig, content, path)


def _path_text(key: str, value: object, path: Path) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{path}: {key} = {value!r}: a path is wanted, in quotes")
    return value


def _extended(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Content of a file laid over the file that it extends (tables merge, other values replace)."""
    resolved = path.resolve()
    if resolved in seen:
        raise UsageError(f"{path}: extends itself, by way of {' -> '.join(map(str, seen))}")
    content = _read_toml(path)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UsageError(f"{path}: extends = {base!r}: the path of another file is wanted, in quotes")
    return _merged(_extended(path.parent / base, (*seen, resolved)), content)


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base[key], top[key]) for key in base.keys() & top.keys() if _are_tables(base[key], top[key])}
    return {**base, **top, **both}


def _are_tables(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; give the path of a federation.toml or site.toml") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a folder; give the path of a federation.toml or site.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML: {error}") from None


def _set(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UsageError(f'--set "{override}": write it as key.sub=value, for example training.batch_size=4')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = content
    *parents, last = [part.strip() for part in key.split(".")]
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UsageError(f'--set "{override}": {parent} is a value, not a section')
    table[last] = value


def _validate(model: type[Model], content: dict[str, Any], path: Path) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as failure:
        problems = [_sentence(error, model) for error in failure.errors()]
        raise UsageError(f"{path}: " + "; ".join(problems)) from None


def _sentence(error: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        allowed = _keys_at(model, error["loc"][:-1])
        close = difflib.get_close_matches(location[-1], allowed, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"allowed here: {', '.join(allowed)}"
        return f'unknown key "{key}"; {hint}'
    if error["type"] == "missing":
        return f'key "{key}" is missing'
    message = error["msg"].removeprefix("Value error, ")
    return f"{key} = {error['input']!r}: {message}" if key else message


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Keys allowed in the section at ``location``; a mapping such as ``sites.<name>`` swallows one part."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[str(part)].annotation
        else:
            current = next(a for a in get_args(current) if isinstance(a, type) and issubclass(a, BaseModel))
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []

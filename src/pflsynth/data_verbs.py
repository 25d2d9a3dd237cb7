"""The verbs ``check`` and ``prepare``: what becomes of a site's data before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pflsynth.errors import DataError, PflsynthError, UsageError
from pflsynth.options import AsJson, ConfigPath, DataRoot, Force, Overrides

if TYPE_CHECKING:
    from pflsynth.config import FederationConfig
    from pflsynth.console import Terminal
    from pflsynth.data.prepare import PrepareReport
    from pflsynth.estimate import Estimate


def check(
    config: ConfigPath,
    data_root: DataRoot = None,
    html: Annotated[Path | None, typer.Option("--html", help="write a page with pictures of every subject")] = None,
    everything: Annotated[bool, typer.Option("--all", help="list subjects that are well too, however many")] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="train a few steps, to tell how long a round will take")
    ] = True,
    force: Force = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check a configuration and the data it names, and tell how long a round will take and what memory it needs.

    Changes nothing but the page that --html asks for.

    \b
    Examples:
      pflsynth check federation.toml
      pflsynth check federation.toml --html check.html
    """
    from pflsynth.config_files import load_config
    from pflsynth.console import Terminal, show_check
    from pflsynth.federation.methods import method_of
    from pflsynth.federation.operations import count_operations
    from pflsynth.quality.page import write_page
    from pflsynth.quality.site import check_site, copies_between

    if html is not None and html.exists() and not force:
        raise UsageError(f"{html}: exists already; choose another --html or overwrite with --force")
    loaded = load_config(config, overrides or (), data_root)
    method = method_of(loaded.federation)
    terminal = Terminal(as_json)
    agreement = loaded.federation.agreement_sha256()
    terminal.finding("ok", f"{config}: agreement {agreement[:12]}")
    trainers = () if method.central else method.trainers(loaded.federation)
    sent = {name: method.sent_megabytes(loaded.federation, name) for name in trainers}
    if sent:
        encoding = loaded.federation.updates.encoding
        terminal.finding("ok", f"a site sends at most {max(sent.values()):.1f} MB after a round ({encoding})")
    operations = count_operations(method, loaded.federation)
    if operations is not None:
        counts = f"{operations.forward:.3g} GFLOP to synthesise, {operations.step:.3g} GFLOP to train on"
        terminal.finding("ok", f"a slice takes {counts} (a multiply-add counts as two)")
    checks = []
    with terminal.progress() as bar:
        for site in loaded.sites:
            show = terminal.counter(bar, f"check {site}")
            checks.append(check_site(loaded.federation, site, pictures=html is not None, progress=show))
    between = copies_between(checks)
    for own in checks:
        show_check(terminal, own, everything)
    for finding in between:
        terminal.finding(finding.level, finding.text)
    every = [*between, *(finding for own in checks for finding in own.every_finding)]
    wrong, suspicious = (sum(own.level == level for own in every) for level in ("wrong", "suspicious"))
    if html is not None:
        write_page(html, f"{loaded.federation.name}: data check", [own.page() for own in checks])
        terminal.say(f"page: {html}")
    estimated = None
    if measure and not wrong:
        training = {own.site: own.training_slices for own in checks if own.site in loaded.federation.participants}
        estimated = _estimate(terminal, loaded.federation, training)
    terminal.document(
        {
            "agreement_sha256": agreement,
            "sent_megabytes": sent,
            "gflop": None if operations is None else asdict(operations),
            "estimate": None if estimated is None else _told(estimated),
            "ok": wrong == 0,
            "wrong": wrong,
            "suspicious": suspicious,
            "findings": {own.site: [asdict(finding) for finding in own.every_finding] for own in checks},
            "between_sites": [asdict(finding) for finding in between],
            "subjects": {
                own.site: {
                    checked.subject.name: {
                        "contrasts": list(checked.subject.volumes),
                        "split": own.splits.get(checked.subject.person),
                        "facts": checked.facts,
                    }
                    for checked in own.subjects
                }
                for own in checks
            },
        }
    )
    if wrong:
        raise DataError(f"{wrong} finding(s) need attention before pflsynth prepare; each line above says what to do")


def _estimate(terminal: Terminal, config: FederationConfig, slices: Mapping[str, Mapping[str, int]]) -> Estimate | None:
    """Measure, extrapolate and print; where nothing can be measured, say why."""
    from pflsynth.console import show_estimate
    from pflsynth.estimate import estimate

    if not slices:  # a site that is held out
        return None
    try:
        with terminal.progress() as bar:
            bar.add_task("measure training steps", total=None)
            found = estimate(config, slices)
    except (PflsynthError, OSError) as error:  # such as a full disk
        terminal.finding("suspicious", f"how long a round takes was not measured: {error}")
        return None
    show_estimate(terminal, found, config.rounds, config.device, config.threads)
    return found


def _told(found: Estimate) -> dict[str, object]:
    """The estimate in the document of ``--json``."""
    return {
        **asdict(found),
        "round_seconds": found.round_seconds,
        "peak_memory_mb": found.peak_memory_mb,
        "best_threads": found.best_threads,
    }


def prepare(
    config: ConfigPath,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder to write, one folder a site; default: site.toml's, or prepared")
    ] = None,
    data_root: DataRoot = None,
    site: Annotated[str | None, typer.Option("--site", help="this site alone")] = None,
    from_dicom: Annotated[
        Path | None, typer.Option("--from-dicom", help="make the site's data folder from this folder of DICOM first")
    ] = None,
    rules: Annotated[Path | None, typer.Option("--dicom-rules", help="own table of rules for DICOM series")] = None,
    key: Annotated[Path | None, typer.Option("--dicom-key", help="table of patients and subjects to keep")] = None,
    export_splits: Annotated[
        Path | None, typer.Option("--export-splits", help="folder to write the splits to, one JSON file a site")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, read no image")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave bad subjects out and go on")] = False,
    force: Force = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Turn folders of images into checked, aligned, scaled, split slices that training reads.

    After any stop the same command goes on with the subjects that are not finished.

    \b
    Examples:
      pflsynth prepare federation.toml --out prepared
      pflsynth prepare federation.toml --site oslo --from-dicom /archive/export
    """
    from pflsynth.config_files import load_config
    from pflsynth.console import Terminal, plan_table, preparation_table
    from pflsynth.data.plan import plan_site
    from pflsynth.data.split import export_split

    loaded = load_config(config, overrides or (), data_root)
    out = out or (loaded.own and loaded.own.prepared) or Path("prepared")
    terminal = Terminal(as_json)
    if not dry_run:
        make_phantom(terminal, loaded.federation)
    sites = _chosen(loaded.sites, site)
    if from_dicom is not None:
        if len(sites) != 1 or dry_run:
            raise UsageError("--from-dicom fills the data folder of one site: give --site too, and no --dry-run")
        _convert(terminal, loaded.federation, sites[0], from_dicom, rules, key, force, skip_bad)
    if dry_run:
        plans = {name: plan_site(loaded.federation, name, out / name) for name in sites}
        terminal.table(plan_table(plans))
        for name, plan in plans.items():
            terminal.notes(name, plan.notes)
        terminal.document({name: asdict(plan) for name, plan in plans.items()})
        return
    reports, errors = prepare_sites(terminal, loaded.federation, sites, out, force=force, skip_bad=skip_bad)
    if reports:
        terminal.table(preparation_table(reports))
    for report in reports.values():
        terminal.notes(report.site, report.notes)
        if export_splits is not None:
            terminal.say(f"{report.site}: splits in {export_split(export_splits, report.site, report.subjects)}")
    terminal.document({name: asdict(report) for name, report in reports.items()})
    if errors:
        raise DataError("\n".join(errors))


def prepare_sites(
    terminal: Terminal, config: FederationConfig, sites: Sequence[str], out: Path, *, force: bool, skip_bad: bool
) -> tuple[dict[str, PrepareReport], list[str]]:
    """Prepare sites one after another with a progress bar; a bad site does not keep the others.

    Returns:
        The reports of the sites that could be prepared, and the errors of the others.
    """
    from pflsynth.data.prepare import prepare_site

    reports, errors = {}, []
    with terminal.progress() as bar:
        for name in sites:
            show = terminal.counter(bar, f"prepare {name}")
            try:
                reports[name] = prepare_site(config, name, out / name, force=force, skip_bad=skip_bad, progress=show)
            except DataError as error:
                errors.append(str(error))
    return reports, errors


def make_phantom(terminal: Terminal, config: FederationConfig) -> None:
    """Write the built-in phantom to ``data_root`` if the configuration asks for it and it is not there."""
    from pflsynth.data.phantom import write_phantom
    from pflsynth.files import replaced_folder

    if config.phantom is None or config.data_root.exists():
        return
    config.data_root.parent.mkdir(parents=True, exist_ok=True)
    with terminal.progress() as bar, replaced_folder(config.data_root) as folder:
        task = bar.add_task("phantom", total=None)
        write_phantom(
            folder,
            subjects=config.phantom,
            sites=config.site_names,
            progress=lambda text: bar.update(task, description=f"phantom {text}"),
        )
    terminal.say(
        f"wrote a phantom of {len(config.sites)} hospitals, {config.phantom} subjects each: {config.data_root}"
    )


def _chosen(sites: Sequence[str], site: str | None) -> Sequence[str]:
    if site is not None and site not in sites:
        raise UsageError(f"--site {site}: the sites here are {', '.join(sites)}")
    return sites if site is None else [site]


def _convert(
    terminal: Terminal,
    config: FederationConfig,
    site: str,
    dicom: Path,
    rules: Path | None,
    key: Path | None,
    force: bool,
    skip_bad: bool,
) -> None:
    """Fill a site's data folder from DICOM."""
    from pflsynth.dicom.convert import convert_dicom

    if config.sites[site].layout != "bids":
        raise UsageError(f'--from-dicom writes a BIDS folder: set sites.{site}.layout to "bids"')
    with terminal.progress() as bar:
        show = terminal.counter(bar, f"DICOM of {site}")
        report = convert_dicom(
            dicom, config.data_folder(site), site, rules=rules, key_file=key, force=force, progress=show
        )
    terminal.notes(site, report.notes)
    terminal.say(f"{site}: {len(report.subjects)} subject(s) converted from DICOM to {report.folder}")
    if report.bad and not skip_bad:
        reasons = "\n".join(report.bad[name] for name in sorted(report.bad))
        raise DataError(f"{reasons}\nmend what is listed, or give --skip-bad to go on without")

"""The rule table: what the shipped rules make of usual protocols, own rules, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pflsynth.dicom.header import TEXT_TAGS, Header
from pflsynth.dicom.rules import SKIP, load_rules
from pflsynth.dicom.series import Series
from pflsynth.errors import UsageError

from ..dicom_builders import AXIAL, SAGITTAL

SE = {"ScanningSequence": "SE"}
GR = {"ScanningSequence": "GR"}
IR_GR = {"ScanningSequence": "GR\\IR"}
IR_SE = {"ScanningSequence": "SE\\IR"}


def series(
    description: str = "",
    tr: float | None = None,
    te: float | None = None,
    ti: float | None = None,
    flip: float | None = 90,
    agent: bool = False,
    images: int = 30,
    orientation: tuple[float, ...] = AXIAL,
    field: float = 3.0,
    **texts: str,
) -> Series:
    """A series with these tags, as the headers would tell."""
    numbers = {"RepetitionTime": tr, "EchoTime": te, "InversionTime": ti, "FlipAngle": flip}
    header = Header(
        path=Path("nowhere"),
        modality="MR",
        patient="P",
        person=("", ""),
        study="1",
        study_time=("", ""),
        series="2",
        series_number=7,
        series_time="",
        image="3",
        instance=1,
        texts={
            **dict.fromkeys(TEXT_TAGS, ""),
            "ImageType": "ORIGINAL\\PRIMARY\\M",
            "SeriesDescription": description,
            **texts,
        },
        numbers={tag: value for tag, value in numbers.items() if value is not None} | {"MagneticFieldStrength": field},
        agent=agent,
        shape=(10, 10),
        spacing=(1.0, 1.0),
        orientations=(orientation,),
        positions=tuple((0.0, 0.0, float(place)) for place in range(images)),
        frames=images,
        whole=True,
    )
    return Series((header,))


PROTOCOLS: list[tuple[str, Series]] = [
    # T1 without contrast agent
    ("T1w", series("t1_mprage_sag_p2_iso", 2300, 2.98, 900, 9, **IR_GR)),
    ("T1w", series("t1_mpr_sag", 1900, 2.2, 1100, 9, **IR_GR)),
    ("T1w", series("Sag 3D FSPGR BRAVO", 8.2, 3.2, 450, 12, **GR)),
    ("T1w", series("T1W_3D_TFE", 8.1, 3.7, None, 8, **GR)),
    ("T1w", series("AX T1 SE", 500, 14, 0, 90, **SE)),
    ("T1w", series("t1_fl2d_tra", 250, 2.5, None, 70, **GR)),
    ("T1w", series("AX T1 FLAIR", 2200, 24, 860, 111, **IR_SE)),
    ("T1w", series("", 600, 10, None, 90, **SE)),
    ("T1w", series("Ax T1 PRE gad", 500, 12, agent=True, **SE)),
    ("T1w", series("AX T1 W/O", 500, 12, agent=True, **SE)),
    # T1 with contrast agent
    ("T1ce", series("t1_mprage_sag_post", 2300, 2.98, 900, 9, **IR_GR)),
    ("T1ce", series("AX T1 POST GAD", 500, 14, **SE)),
    ("T1ce", series("T1 +C", 600, 12, **SE)),
    ("T1ce", series("t1_tse_tra_KM", 600, 12, **SE)),
    ("T1ce", series("T1W_3D_TFE_Gd", 8.1, 3.7, None, 8, **GR)),
    ("T1ce", series("AX T1 FLAIR +C", 2200, 24, 860, 111, **IR_SE)),
    ("T1ce", series("AX T1 W/WO CONTRAST", 500, 14, **SE)),
    ("T1ce", series("AX T1", 500, 14, agent=True, **SE)),
    ("T1ce", series("t1_mprage", 2300, 2.98, 900, 9, agent=True, **IR_GR)),
    # T2, proton density, FLAIR
    ("T2w", series("t2_tse_tra", 5000, 98, **SE)),
    ("T2w", series("Ax T2 FSE", 4200, 102, 0, 142, **SE)),
    ("T2w", series("t2_space_sag_p2_iso", 3200, 408, None, 120, **SE)),
    ("T2w", series("", 3000, 80, **SE)),
    ("T2w", series("T2W_TSE after contrast", 3000, 80, agent=True, **SE)),
    ("PDw", series("PD_TSE", 2800, 12, **SE)),
    ("PDw", series("pd+t2_tse_tra", 3000, 15, **SE)),
    ("T2w", series("pd+t2_tse_tra", 3000, 95, **SE)),
    ("FLAIR", series("t2_tirm_tra_dark-fluid", 9000, 89, 2500, 150, **IR_SE)),
    ("FLAIR", series("Ax T2 FLAIR", 8000, 140, 2250, 160, **IR_SE)),
    ("FLAIR", series("FLAIR_longTR", 11000, 125, 2800, 90, **IR_SE)),
    ("FLAIR", series("t2_spc_da-fl_sag", 5000, 395, 1800, 120, **IR_SE)),
    ("FLAIR", series("", 9000, 120, 2500, 150, **IR_SE)),
    # not wanted
    (SKIP, series("localizer", 8.6, 4, None, 20, **GR)),
    (SKIP, series("3-plane loc", 5, 1.6, None, 30, **GR)),
    (SKIP, series("AAHead_Scout", 3.2, 1.4, None, 8, **GR)),
    (SKIP, series("", 8.6, 4, None, 20, images=3, **GR)),
    (SKIP, series("ep2d_diff_3scan_trace_p2", 5000, 80, ScanningSequence="EP")),
    (SKIP, series("resolve", 5000, 65, ScanningSequence="EP")),
    (SKIP, series("AX DWI b1000", 6000, 90, **SE)),
    (SKIP, series("ADC (10^-6 mm2/s)", 6000, 90, **SE)),
    (SKIP, series("", 6000, 90, ImageType="DERIVED\\PRIMARY\\DIFFUSION\\ADC", **SE)),
    (SKIP, series("", 6000, 90, SequenceName="*ep_b1000#1")),
    (SKIP, series("SWI_Images", 28, 20, None, 15, **GR)),
    (SKIP, series("Ax T2* GRE", 600, 15, None, 20, **GR)),
    (SKIP, series("t2_fl2d_tra_hemo", 620, 19.9, None, 20, **GR)),
    (SKIP, series("", 700, 20, None, 20, **GR)),
    (SKIP, series("ep2d_perf", 1500, 30, ScanningSequence="EP")),
    (SKIP, series("t1_twist_tra_dynamic", 5, 2, None, 15, **GR)),
    (SKIP, series("pcasl_3d", 4600, 15, **SE)),
    (SKIP, series("TOF_3D_multi-slab", 21, 3.4, None, 18, **GR)),
    (SKIP, series("MRA COW", 21, 3.4, None, 18, **GR)),
    (SKIP, series("T1 MIP THICK", 500, 12, ImageType="DERIVED\\SECONDARY\\PROJECTION IMAGE", **SE)),
    (SKIP, series("t1_mprage cor", 2300, 3, 900, 9, ImageType="DERIVED\\SECONDARY\\MPR", **IR_GR)),
    (SKIP, series("T1", 500, 12, ImageType="ORIGINAL\\PRIMARY\\P\\ND", **SE)),
    (SKIP, series("T1", 500, 12, ImageType="ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE", **SE)),
    (SKIP, series("T1", 500, 12, ImageType="ORIGINAL\\PRIMARY\\M\\IMAGINARY", **SE)),
    (SKIP, series("t2_stir_cor", 4500, 80, 160, 150, **IR_SE)),
    (SKIP, series("", 4500, 80, 160, 150, **IR_SE)),
    (SKIP, series("Ax FLAIR +C", 9000, 120, 2500, 150, **IR_SE)),
    (SKIP, series("t2_flair post", 9000, 120, 2500, 150, **IR_SE)),
    (SKIP, series("t1_tse_sag C-SPINE", 600, 12, **SE)),
    (SKIP, series("t1_tse_sag", 600, 12, BodyPartExamined="CSPINE", **SE)),
]


@pytest.mark.parametrize(("contrast", "protocol"), PROTOCOLS)
def test_shipped_rules_know_the_usual_protocols(contrast: str, protocol: Series) -> None:
    rule = load_rules().find(protocol)
    assert rule is not None
    assert rule.contrast == contrast, rule.name


@pytest.mark.parametrize("unknown", [series("AX T1"), series("", 1500, 55, **SE), series("", 20, 3, None, 3, **GR)])
def test_what_no_rule_fits_is_not_guessed(unknown: Series) -> None:
    assert load_rules().find(unknown) is None


def test_shipped_rules_have_names_of_their_own() -> None:
    names = [rule.name for rule in load_rules().rules]
    assert len(set(names)) == len(names)


def own(tmp_path: Path, text: str) -> Path:
    """A file of own rules."""
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


EVERY_KEY = """
[[rule]]
name = "mine"
contrast = "PDw"
SeriesDescription = 'HEAD'
ProtocolName = 'head|brain'
SequenceName = '^\\*tse'
ScanningSequence = 'SE'
SequenceVariant = 'SK'
ImageType = 'PRIMARY'
BodyPartExamined = 'head'
plane = 'sagittal'
ContrastBolusAgent = false
RepetitionTime = { min = 100, max = 200 }
EchoTime = { max = 20 }
InversionTime = { max = 0 }
FlipAngle = { min = 90, max = 90 }
MagneticFieldStrength = { min = 2.5 }
images = { min = 20, max = 40 }
"""


def fitting(**changes: Any) -> Series:
    """A series that fits every condition of ``EVERY_KEY``, or all but the changed ones."""
    tags: dict[str, Any] = {
        "description": "head",
        "tr": 150,
        "te": 20,
        "ti": 0,
        "ProtocolName": "BRAIN",
        "SequenceName": "*tse2d",
        "ScanningSequence": "SE",
        "SequenceVariant": "SK\\SP",
        "BodyPartExamined": "HEAD",
        "orientation": SAGITTAL,
    }
    return series(**{**tags, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"description": "knee"},
        {"ProtocolName": ""},
        {"SequenceName": "tse"},
        {"ScanningSequence": "GR"},
        {"SequenceVariant": ""},
        {"ImageType": "DERIVED"},
        {"BodyPartExamined": "NECK"},
        {"orientation": AXIAL},
        {"agent": True},
        {"tr": 99},
        {"tr": 201},
        {"tr": None},
        {"te": 20.1},
        {"ti": 1},
        {"ti": None},
        {"flip": 89},
        {"field": 1.5},
        {"images": 19},
        {"images": 41},
    ],
)
def test_every_condition_must_hold(tmp_path: Path, change: dict[str, Any]) -> None:
    (rule,) = load_rules(own(tmp_path, f"shipped = false\n{EVERY_KEY}")).rules
    assert rule.fits(fitting())
    assert not rule.fits(fitting(**change))


def test_own_rules_go_first_or_stand_alone(tmp_path: Path) -> None:
    text = "[[rule]]\nname = 'all is T2'\ncontrast = 'T2w'\nSeriesDescription = '\\bt1\\b'\n"
    mine, other = series("t1_se", 500, 12, **SE), series("other", 500, 12, **SE)
    first, alone = load_rules(own(tmp_path, text)), load_rules(own(tmp_path, f"shipped = false\n{text}"))
    for table, expected in ((first, "T1w"), (alone, None)):
        found = table.find(mine)
        assert found is not None
        assert (found.contrast, found.own) == ("T2w", True)
        rest = table.find(other)
        assert (None if rest is None else rest.contrast) == expected


def wrong(text: str) -> str:
    """A rule with a mistake: ``text`` follows a name, a contrast and a condition."""
    return f"[[rule]]\nname = 'a'\ncontrast = 'T1w'\nplane = 'axial'\n{text}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rule]\n", "is not TOML"),
        ('[[rule]]\nname = "a"\ncontrast = "T1w"\nplane = "\\bax"', "write it in single quotes"),
        ('[[rule]]\nname = "a"\ncontrast = "T1w"\nplane = "\\d"', "write regular expressions in single quotes"),
        ("", "it has no rules"),
        ("rule = 3", "write each rule under a line [[rule]]"),
        ("shiped = true\n" + wrong(""), 'unknown key "shiped"; did you mean "shipped"?'),
        ("shipped = 1\n" + wrong(""), "shipped = 1: true or false is wanted"),
        (
            wrong("SeriesDescripton = 'a'"),
            'rule 1 (a): unknown key "SeriesDescripton"; did you mean "SeriesDescription"?',
        ),
        (wrong("Plane = 'a'"), 'unknown key "Plane"; did you mean "plane"?'),
        (wrong("colour = 'a'"), 'unknown key "colour"; allowed here: name, contrast, SeriesDescription'),
        (wrong("SequenceName = '('"), "SequenceName = '(': is not a regular expression"),
        (wrong("SequenceName = ''"), "a regular expression is wanted"),
        (wrong("EchoTime = 12"), "EchoTime = 12: a range is wanted"),
        (wrong("EchoTime = {}"), "a range is wanted"),
        (wrong("EchoTime = { min = 'a' }"), "a range is wanted"),
        (wrong("EchoTime = { min = nan }"), "a range is wanted"),
        (wrong("EchoTime = { maximum = 3 }"), 'EchoTime: unknown key "maximum"'),
        (wrong("EchoTime = { min = 9, max = 3 }"), "EchoTime: min = 9 is above max = 3"),
        (
            wrong("ContrastBolusAgent = 'yes'"),
            "ContrastBolusAgent = 'yes': true (an agent is named) or false is wanted",
        ),
        ("[[rule]]\ncontrast = 'T1w'\nplane = 'a'", 'rule 1 (no name): name = "..." is missing'),
        ("[[rule]]\nname = 'a'\nplane = 'a'", "contrast is missing"),
        ("[[rule]]\nname = 'a'\ncontrast = 'T1'\nplane = 'a'", "contrast = 'T1'; did you mean \"T1w\"?"),
        ("[[rule]]\nname = 'a'\ncontrast = 'T1w'", "it has no condition"),
    ],
)
def test_wrong_rules_are_told_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = own(tmp_path, text)
    with pytest.raises(UsageError) as failure:
        load_rules(path)
    assert str(failure.value).startswith(f"{path}: ")
    assert said in str(failure.value)


def test_all_mistakes_are_told_at_once_and_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)rule 1 .*; rule 2 "):
        load_rules(own(tmp_path, wrong("EchoTime = 1") + wrong("images = 2")))
    with pytest.raises(UsageError, match="cannot be read"):
        load_rules(tmp_path / "none.toml")

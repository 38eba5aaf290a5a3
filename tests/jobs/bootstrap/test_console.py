"""What several stages write at a time: whole lines with their names, bars in place or as lines of a log."""

import sys

import pytest

from jobs.bootstrap.console import Console


def test_a_log_gets_whole_lines_with_their_stage(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(["idm", "fdm-ft"])
    console.write("idm", "half")
    console.write("fdm-ft", "\rbar 1%")
    console.write("fdm-ft", "\rbar 1%\rbar 9%")
    console.write("idm", " a line\nnext\n\n")
    console.write("fdm-ft", "\rbar 9%\nloss 3\n")
    console.write("idm", "no end")
    console.end("idm")
    console.line("idm: complete")
    assert capsys.readouterr().out.splitlines() == [
        "fdm-ft | bar 1%",
        "fdm-ft | bar 9%",
        "idm    | half a line",
        "idm    | next",
        "fdm-ft | loss 3",
        "idm    | no end",
        "idm: complete",
    ]


def test_a_terminal_shows_all_bars_in_its_last_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    console = Console(["idm", "fdm"])
    assert console.is_terminal
    console.write("idm", "\rtrain idm: 20% of very many steps")
    console.write("fdm", "\rtrain fdm: 3%")
    capsys.readouterr()
    console.write("fdm", "\nsaved\n")
    clear = "\r\x1b[K"
    assert capsys.readouterr().out == f"{clear}fdm | train fdm: 3%\nfdm | saved\ntrain idm: 20% of very many steps"
    console.write("fdm", "\rtrain fdm: 4%")
    assert capsys.readouterr().out == f"{clear}train idm: 20% o | train fdm: 4%"
    console.end("idm")
    console.line("idm: complete")
    assert capsys.readouterr().out == f"{clear}train fdm: 4%{clear}idm: complete\ntrain fdm: 4%"

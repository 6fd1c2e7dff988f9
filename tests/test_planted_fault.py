"""The demo: one of eight environments pays the wrong sign, and the scores say which."""

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "planted_fault.py"


def test_the_scores_point_at_the_faulty_environment(tmp_path, capsys):
    example = runpy.run_path(str(EXAMPLE))
    args = example["Args"](out=tmp_path / "runs", faulty=2, rounds=2)
    example["main"](args)
    shares = example["harm"](args, 0)
    assert shares.shape == (2, 8)
    assert (shares.argmax(1) == 2).all()
    said = capsys.readouterr().out
    assert "environment 2 has the largest share in 2 of 2 rounds" in said
    assert (tmp_path / "runs" / "harm-0.png").stat().st_size > 1000
    dropped = example["runs"].open(tmp_path / "runs" / "without the environment-0").sql("select dropped from rounds")
    assert dropped.fetchall() == [(256,), (256,)]

"""The short form of benchmarks.fuzz_pictures: real files, a process of their own, its memory."""

import sys

from kit.pictures import bombs, reading

SMALL = tuple(bomb for bomb in bombs.BOMBS if "limit" not in bomb[0])


def test_damaged_pictures_neither_crash_nor_hang_nor_take_the_memory():
    found = reading.run(damages=150, seed=1, bombs=SMALL)
    assert not [(p, o) for p, o in found if o.result not in ("read", "replaced")]
    assert len({picture.kind for picture, _ in found}) == 7
    results = [outcome.result for _, outcome in found]
    assert results.count("read") >= 20 and results.count("replaced") >= 60  # both were seen
    assert max(outcome.peak for _, outcome in found) < 1e9  # some promise what is allowed


# Without these the zeros of the table would prove nothing.


def test_want_of_memory_is_counted():
    bomb = next(b for b in bombs.BOMBS if b[0] == "RGBA PNG at the limit")
    ((_, outcome),) = reading.run(damages=1, seed=0, bombs=[bomb], bound=100 << 20)
    assert outcome.result == "no memory" and 0 < outcome.peak - outcome.before < 110e6


def test_crashes_and_hangs_are_counted(tmp_path, monkeypatch):
    for body, expected in (("kill -11 $$", "crashed"), ("exec sleep 30", "hung")):
        script = tmp_path / expected
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        found = reading.run(damages=2, seed=0, bombs=SMALL, patience=0.5)
        assert [outcome.result for _, outcome in found] == [expected] * 2
        assert f"exit code {-11 if expected == 'crashed' else -9}" in found[0][1].reason
        assert f"| all | 2 | 0 | 0 | 0 | {'0 | 2' if expected == 'crashed' else '2 | 0'} |" in (
            reading.table(found)
        )

"""The steps of `make gpu`: each runs whatever became of the others, in its own time."""

import json
import os
import subprocess
import sys
import time
import zipfile

import pytest

from benchmarks import gpu
from benchmarks.gpu import Missing, Step


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "SITE", tmp_path / "build" / "gpu")
    for name in ("CONFORMANCE", "EXPERIMENTS", "CHAOS"):
        monkeypatch.setattr(gpu, name, tmp_path / "build" / name.lower())
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))


def python(code, seconds=20.0):
    return Step(lambda: [sys.executable, "-c", code], seconds)


def missing():
    raise Missing("there is no spoon")


def outcomes(monkeypatch, steps, *arguments):
    """The exit code, and what is said of each step."""
    monkeypatch.setattr(gpu, "STEPS", steps)
    code = gpu.main(list(arguments))
    log = (gpu.results() / "gpu.log").read_text()
    lines = log.split("== make gpu\n")[1].splitlines()
    return code, dict(line.split(maxsplit=1) for line in lines), log


def test_a_step_that_fails_does_not_keep_the_later_ones_from_running(monkeypatch, capfd):
    code, told, log = outcomes(monkeypatch, {
        "one": python("print('first')"),
        "two": python("import sys; print('second', file=sys.stderr); sys.exit(3)"),
        "three": Step(missing, 20),
        "four": Step(lambda: ["/no/such/program"], 20),
        "five": python("print('last')"),
    })
    assert code == 1
    assert told["one"].startswith("ok (") and told["five"].startswith("ok (")
    assert told["two"].startswith("failed with exit code 3")
    assert told["three"].startswith("not run: there is no spoon")
    assert told["four"].startswith("not run: ") and "/no/such/program" in told["four"]
    out = capfd.readouterr().out
    for words in ("first", "second", "last", "== two"):
        assert words in log and words in out


def test_all_is_well(monkeypatch):
    code, told, _ = outcomes(monkeypatch, {"one": python("pass"), "two": python("pass")})
    assert code == 0 and list(told) == ["one", "two"]


STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("begun", flush=True)
time.sleep(60)
"""
TIDY = """
import time
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("written", flush=True)
"""


@pytest.mark.parametrize(("code", "words"), [(STUBBORN, ["begun"]), (TIDY, ["begun", "written"])])
def test_a_step_out_of_time_is_interrupted_then_killed(code, words, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    begin = time.monotonic()
    status, told, log = outcomes(monkeypatch, {"slow": python(code, 6), "next": python("pass")})
    assert time.monotonic() - begin < 60
    assert status == 1 and told["slow"].startswith("stopped after 6 s")
    assert told["next"].startswith("ok")
    assert all(word in log for word in words)


def test_the_whole_has_a_limit_too(monkeypatch):
    monkeypatch.setattr(gpu, "WHOLE", 2.0)
    slow = python("import time; time.sleep(60)", 30)
    _, told, _ = outcomes(monkeypatch, {"slow": slow, "next": slow})
    assert told["slow"].startswith("stopped after 2 s")
    assert told["next"].startswith("stopped after 1 s")


def test_steps_that_are_not_usual_run_when_they_are_named(monkeypatch):
    steps = {"one": python("pass"), "long": Step(python("pass").command, 20, usual=False)}
    assert list(outcomes(monkeypatch, steps)[1]) == ["one"]
    monkeypatch.setattr(gpu, "WHOLE", -60.0)  # of which they are no part
    assert outcomes(monkeypatch, steps, "long")[0] == 0


def test_steps_are_chosen_by_name(monkeypatch, capsys):
    steps = {"one": python("pass"), "two": python("pass")}
    assert list(outcomes(monkeypatch, steps, "two")[1]) == ["two"]
    with pytest.raises(SystemExit):
        gpu.main(["three"])
    assert "there is no step three; the steps are one, two" in capsys.readouterr().err


def test_the_time_of_all_steps_is_under_nine_minutes():
    assert gpu.WHOLE + 2 * gpu.GRACE <= 9 * 60
    assert max(step.seconds for step in gpu.STEPS.values() if step.usual) < gpu.WHOLE


def test_what_was_not_built_is_named():
    with pytest.raises(Missing, match="make wheel"):
        gpu.install()
    for step in (gpu.conformance, gpu.experiments, gpu.chaos):
        with pytest.raises(Missing, match=f"make {step.__name__}"):
            step()
    gpu.EXPERIMENTS.parent.mkdir()
    gpu.EXPERIMENTS.touch()
    program, steps, file = gpu.experiments()
    assert os.access(program, os.X_OK) and int(steps) > 0
    assert file == str(gpu.results() / "experiments.csv")


def test_without_pytest(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Missing, match="has no pytest: pip install pytest"):
        gpu.pytest("")


def test_the_test_files_are_there(request):
    for name in gpu.TESTS:
        assert (request.config.rootpath / "tests" / name).is_file()
        assert any(word.endswith(name) for word in gpu.pytest(""))


def test_the_installed_package_hides_the_checkout(tmp_path, monkeypatch):
    """And the newest wheel is the one that is installed."""
    (tmp_path / "gatedrnn").mkdir()
    (tmp_path / "gatedrnn" / "__init__.py").write_text("origin = 'checkout'")
    (tmp_path / "dist").mkdir()
    for age, version in ((100, "0.2.0"), (200, "0.1.0")):
        wheel = tmp_path / "dist" / f"gatedrnn-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            info = f"gatedrnn-{version}.dist-info"
            archive.writestr("gatedrnn/__init__.py", f"origin = {version!r}")
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gatedrnn\n"
                                                 f"Version: {version}\nRequires-Dist: absent\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
                                              "Tag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        os.utime(wheel, (time.time() - age,) * 2)
    show = "import gatedrnn, json, os; print(json.dumps([gatedrnn.origin, os.environ['RESULTS']]))"
    code, _, log = outcomes(monkeypatch, {"install": Step(gpu.install, 60),
                                          "show": python(show)})
    assert code == 0, log
    shown = next(line for line in log.splitlines() if line.startswith("["))
    assert json.loads(shown) == ["0.2.0", str(tmp_path / "results")]


def test_needs_neither_torch_nor_gatedrnn(request):
    code = ("import sys, benchmarks.gpu, benchmarks.chaos; "
            "assert not {'torch', 'gatedrnn', 'numpy'} & sys.modules.keys()")
    subprocess.run([sys.executable, "-c", code], cwd=request.config.rootpath, check=True)

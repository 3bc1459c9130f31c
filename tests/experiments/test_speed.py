"""The benchmark: that it counts and compares rightly, and runs. Speed itself is never asserted."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("matplotlib", reason="the experiments need torch_convbp[experiments]")
pytest.importorskip("torchvision", reason="the experiments need torch_convbp[experiments]")

import torch_convbp as bp
from experiments.speed import bandwidth, floors, implementations, options, table, timing
from experiments.speed.cases import NETWORKS, SUITES, Network, parse
from experiments.speed.ceilings import Ceiling
from experiments.speed.floors import Floor, Plan
from experiments.speed.measure import make_setup, measure_row
from experiments.speed.results import Results, Row, geometric_mean
from experiments.speed.timing import Measured, Spread

ROOT = Path(__file__).resolve().parents[2]

# --- cases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_names_cases_of_one_kind_once(suite: str) -> None:
    names = SUITES[suite].split()
    assert len(set(names)) == len(names)
    assert len({parse(name).operators for name in names}) == 1


@pytest.mark.parametrize(
    "name, output_size, operator, operations, bytes",
    [
        # 2 * 2 * 4 * 5 * 5 * 3 * 9 operations; 2 * 3 * 25 + 4 * 3 * 9 + 2 * 4 * 25 numbers
        ("2x3x5-4k3", (2, 4, 5, 5), "forward", 10800, 4 * 458),
        ("2x3x5-4k3", (2, 4, 5, 5), "block", 3 * 10800, 3 * 4 * 458),
        ("2x3x5-4k3f", (2, 4, 5, 5), "block", 2 * 10800, 4 * (2 * 150 + 3 * 108 + 3 * 200)),
        ("1x6x7x9-6k3s2g6", (1, 6, 4, 5), "weight gradient", 2 * 120 * 9, 4 * (378 + 54 + 120)),
        ("1x2x9-2k3p0d2", (1, 2, 5, 5), "forward", 2 * 50 * 18, 4 * (162 + 36 + 50)),
        ("max1x2x8-k2s2p0", (1, 2, 4, 4), "forward", 0, 4 * (128 + 32)),
    ],
)
def test_operations_and_bytes(
    name: str, output_size: tuple[int, ...], operator: str, operations: int, bytes: int
) -> None:
    case = parse(name)
    assert case.output_size == output_size
    assert case.work(operator) == (operations, bytes)


def test_another_batch_changes_the_name_too() -> None:
    assert parse("64x3x8-4k3", 2) == parse("2x3x8-4k3")
    assert parse("avg64x3x8-k2s2p0", 2) == parse("avg2x3x8-k2s2p0")
    assert parse("vgg", 2).name == "vgg 2x3x32"


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--graphs", "argument --device: TF32 and CUDA graphs are --device cuda's"),
        ("--precision tf32", "argument --device: TF32 and CUDA graphs are --device cuda's"),
        ("--suite alexnet", "argument --suite: invalid choice: 'alexnet'"),
        ("--shapes 64x64", "argument --shapes: 64x64: expected a shape such as"),
        ("--shapes 2x6x8-4k3g4", "2x6x8-4k3g4: groups must divide channels and filters"),
        ("--shapes 2x6x8-4k3+cube", "2x6x8-4k3+cube: expected an activation of relu, "),
        ("--shapes 2x6x4-4k7p0", "the kernel does not fit into the padded picture"),
        ("--shapes 2x6x8-4k3s0", "sizes, kernel and stride must be at least 1"),
        ("--shapes max2x6x8-k2s2p2", "a pooling has no groups, dilation or padding so large"),
        ("--shapes 2x6x8-4k3,vgg", "convolutions, poolings and networks need a run each"),
        ("--operators sideways", "expected of forward, input gradient, weight gradient, layer"),
        ("--sweep --algorithm direct", "argument --sweep: runs every algorithm"),
        ("--sweep --compile", "argument --sweep: compares algorithms of torch_convbp"),
        ("--suite pooling --sweep", "a pooling has one algorithm and no compiled side"),
        ("--threads 0", "argument --threads: expected a whole number of at least 1"),
        ("--write nowhere.md", "argument --write: nowhere.md cannot be read"),
        ("--write README.md", "README.md has no lines <!-- speed: core --> and"),
    ],
)
def test_bad_options_are_refused(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        options.parse_arguments(arguments.split())
    assert message in capsys.readouterr().err


def test_without_a_gpu_cuda_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    if bp.backends.cuda.is_available():
        options.parse_arguments(["--device", "cuda"])
        return
    with pytest.raises(SystemExit, match="2"):
        options.parse_arguments(["--device", "cuda"])
    assert "argument --device: cuda cannot be timed: " in capsys.readouterr().err


def test_variables_that_are_missing_are_set_before_torch_is_loaded(monkeypatch) -> None:
    wanted = options.parse_arguments(["--isa-of-torch", "avx2", "--no-page-faults"])
    expected = {"ONEDNN_MAX_CPU_ISA": "AVX2", **options.NO_PAGE_FAULTS}
    for name in expected:
        monkeypatch.delenv(name, raising=False)
    assert options.environment(wanted) == expected
    for name, value in expected.items():
        monkeypatch.setenv(name, value)
    assert options.environment(wanted) == {}
    assert wanted.title == "core, oneDNN at most AVX2, without page faults"


# --- sides and their errors --------------------------------------------------------------------


def setup(layout: str = "NCHW", *names: str) -> implementations.Setup:
    return implementations.Setup(
        layout, names or ("torch", "ours"), "auto", 1, seed=0, device="cpu"
    )


WORKS = [
    (parse(name), operator)
    for name in ("2x6x9x7-8k3", "2x6x9x7-6k3s2g6f", "2x6x9x7-8k1+gelu", "avg2x3x8-k2s2p0")
    for operator in parse(name).operators
]
WORKS += [(Network(model, 8, 32), "training step") for model in ("resnet20", "mobilenetv2")]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layout", implementations.MEMORY_FORMATS)
@pytest.mark.parametrize("case, operator", WORKS, ids=lambda value: getattr(value, "name", value))
def test_all_sides_compute_the_same_and_an_error_is_seen(case, operator: str, layout: str) -> None:
    work = implementations.work(case, operator, setup(layout))
    # Through a whole network rounding grows, and flips masks.
    allowed = 0.1 if isinstance(case, Network) else 1e-5
    assert list(work.runs) == ["torch", "ours"]
    for run in work.runs.values():
        values = run()
        assert work.error(values) < allowed
        for i, value in enumerate(values[:2]):
            wrong = [*values]
            wrong[i] = 1.5 * value
            if not (i == 1 and isinstance(case, Network)):  # all of its gradients are one
                assert work.error(tuple(wrong)) == pytest.approx(0.5, abs=allowed)


def test_every_network_has_a_model() -> None:
    assert implementations.MODELS.keys() == NETWORKS.keys()


def test_apart_and_the_algorithms_are_sides() -> None:
    names = ("torch", "apart", "auto", "direct", "winograd")
    work = implementations.work(parse("1x16x8-16k3"), "block", setup("NCHW", *names))
    assert tuple(work.runs) == names
    for name, algorithm in zip(names[1:], ["auto", *names[2:]], strict=True):
        implementations.switch(name, setup())
        assert bp.backends.cpu.conv_algorithm == algorithm
    bp.backends.cpu.conv_algorithm = "auto"


# --- times -------------------------------------------------------------------------------------


def test_the_least_disturbed_attempt_counts(monkeypatch) -> None:
    shares = iter([(0.5, True), (0.2, True), (0.4, True)])
    monkeypatch.setattr(timing.Watch, "foreign", lambda self: next(shares))
    calls: list[str] = []
    runs = {side: lambda side=side: calls.append(side) for side in ("torch", "ours")}
    measured = timing.measure(runs, lambda side: None, repeats=3, seconds=1, attempts=3)
    assert (measured.foreign_share, measured.disturbed, measured.attempts) == (0.2, True, 3)
    assert calls == ["torch", "ours"] * (3 * (3 + timing.WARM_UP))  # in turn
    assert measured.spreads["ours"].samples == 3


@pytest.mark.parametrize("ticks, share, disturbed", [(60, 0.25, True), (52, 0.05, False)])
def test_what_others_use_of_our_cpus(
    monkeypatch, ticks: int, share: float, disturbed: bool
) -> None:
    """A second in which this process used 0.5 s on two CPUs; a tick is 10 ms."""
    ends = {"perf_counter": iter([0.0, 0.2]), "process_time": iter([0.0, 0.5])}
    clocks = {name: lambda it=it: next(it) for name, it in ends.items()}
    monkeypatch.setattr(timing, "time", SimpleNamespace(**clocks))
    busy = iter([1000, 1000 + ticks])
    monkeypatch.setattr(timing, "busy_ticks", lambda: next(busy))
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(timing.os, "sysconf", lambda _: 100)
    assert timing.Watch().foreign() == (pytest.approx(share), disturbed)


def test_ticks_are_those_of_our_cpus_and_not_idle(monkeypatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu 9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 4 800 800 8 16 32 0 0\ncpu1 64 0 0 1 1 0 0 0\n"
    )
    monkeypatch.setattr(timing, "STAT", stat)
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert timing.busy_ticks() == 1 + 2 + 4 + 8 + 16 + 32
    monkeypatch.setattr(timing, "STAT", tmp_path / "missing")
    assert timing.busy_ticks() is None


# --- what follows from the times ---------------------------------------------------------------


def row(case: str, layout: str, **milliseconds: float) -> Row:
    spreads = {side: Spread(ms, ms - 1, ms + 1, 9, 0.0) for side, ms in milliseconds.items()}
    return Row(case, layout, "block", 1e9, 1e6, Measured(spreads, 0.0, False), {}, {})


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4)
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1)


def test_summaries() -> None:
    rows = [
        row("a", "NCHW", torch=8, compiled=4, ours=4),
        row("b", "NCHW", torch=16, compiled=32, ours=2),
        row("a", "channels_last", torch=3, ours=2),
        row("b", "channels_last", torch=18, ours=9),
    ]
    results = Results("core", "", "", {}, {}, {}, [], rows)
    assert [(s.layout, s.against, s.worst, s.worst_case) for s in results.summaries()] == [
        ("NCHW", "torch", 2, "a"),
        ("NCHW", "compiled", 1, "a"),
        ("channels_last", "torch", 1.5, "a"),
        ("fastest", "fastest of torch", 1.5, "a"),  # 3 over 2; of b 16 over 2
    ]
    means = [s.geometric_mean for s in results.summaries()]
    assert means == pytest.approx([4, 4, 3**0.5, 12**0.5])
    assert rows[0].ratio_quartiles() == (7 / 5, 9 / 3)


def test_the_choice_of_an_algorithm_against_the_best() -> None:
    assert row("a", "NCHW", torch=9, auto=6, direct=6, winograd=4).best_algorithm() == (
        "winograd",
        1.5,
    )
    assert row("a", "NCHW", torch=9, auto=6, direct=6).best_algorithm() == ("direct", 1)


# --- the floor ---------------------------------------------------------------------------------

WINOGRAD = 64 * 8 * 8 * 36 * 64 * 64  # tiles, points, channels, filters
DIRECT = 64 * 32 * 32 * 9 * 64 * 64


@pytest.mark.parametrize(
    "name, operator, algorithm, expected",
    [
        ("64x64x32-64k3", "forward", "auto", Plan("winograd", WINOGRAD)),
        ("64x64x32-64k3", "layer", "auto", Plan("winograd", WINOGRAD)),
        ("64x64x32-64k3", "weight gradient", "auto", Plan("winograd", WINOGRAD)),
        ("64x64x32-64k3", "block", "auto", Plan("winograd", 3 * WINOGRAD)),
        ("64x64x32-64k3f", "block", "auto", Plan("winograd", 2 * WINOGRAD)),
        ("64x64x32-64k3", "input gradient", "direct", Plan("direct", DIRECT)),
        ("64x96x32-96k3g96", "forward", "auto", Plan("depthwise", 64 * 32 * 32 * 9 * 96)),
        ("64x64x32-64k1", "block", "auto", Plan("pointwise", 3 * 64 * 32 * 32 * 64 * 64)),
        ("max64x64x32-k2s2p0", "forward", "auto", Plan("pooling", 0)),
    ],
)
def test_the_multiply_adds_of_the_chosen_algorithm(
    name: str, operator: str, algorithm: str, expected: Plan
) -> None:
    with bp.backends.cpu.flags(conv_algorithm=algorithm):
        assert floors.plan(parse(name), operator, setup()) == expected


# 2e9 operations a second; 8e9 bytes a second within 1000 bytes, 1e9 beyond.
CEILING = Ceiling("1 thread", 2e9, "", 1e9, [(100, 8e9), (1000, 1e9)])


@pytest.mark.parametrize(
    "multiply_adds, bytes, expected",
    [
        (5000, 4000, Floor(5e-6, "arithmetic")),
        (3000, 4000, Floor(4e-6, "memory")),
        (0, 1000, Floor(1e-6, "memory")),
        (0, 800, Floor(1e-7, "memory")),  # at the rate of the smaller working set
        (0, 80, Floor(1e-8, "memory")),
    ],
)
def test_the_floor_is_the_longer_time(multiply_adds: int, bytes: int, expected: Floor) -> None:
    found = floors.floor(Plan("direct", multiply_adds), bytes, CEILING)
    assert found.seconds == pytest.approx(expected.seconds) and found.bound == expected.bound


def test_the_share_of_the_floor_and_its_mean() -> None:
    rows = [row("a", "NCHW", torch=8, ours=4), row("b", "NCHW", torch=16, ours=1)]
    rows += [row("a", "channels_last", torch=3, ours=2)]
    rows[0].plans = {"ours": Plan("direct", 1e9)}  # a second of arithmetic, 1 ms of memory
    rows[1].plans = rows[2].plans = {"ours": Plan("winograd", 5e8)}
    results = Results("core", "", "", {}, {}, {}, [CEILING], rows)
    assert [results.share(r) for r in rows] == pytest.approx([0.25, 0.5, 0.25])
    shares = [s.share for s in results.summaries()]  # last, "b" and the faster layout of "a"
    assert shares == pytest.approx([0.125**0.5, 0.25, 0.125**0.5])
    assert table.times(results, rows[0], ["torch", "ours"]) == "8000 / 4000 = 2.00 (25 %)"
    assert [line[-1] for line in table.summaries(results)] == ["mean share", "35 %", "25 %", "35 %"]
    plain = results.plain()["rows"][0]
    assert plain["floors"] == {"ours": {"seconds": 1.0, "bound": "arithmetic"}}
    assert plain["share"] == 0.25


def test_on_a_gpu_all_arithmetic_is_direct() -> None:
    gpu = replace(setup(), device="cuda")
    assert floors.plan(parse("64x64x32-64k3"), "block", gpu) == Plan("direct", 3 * DIRECT)


def test_a_network_has_no_floor() -> None:
    assert floors.plan(NETWORKS["vgg"], "training step", setup()) is None
    results = Results("", "", "", {}, {}, {}, [CEILING], [row("a", "NCHW", torch=8, ours=4)])
    assert results.share(results.rows[0]) is None
    assert table.summaries(results)[-1][-1] == "–"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bandwidth_falls_with_the_size_of_the_working_set(monkeypatch, threads: int) -> None:
    monkeypatch.setattr(bandwidth, "SIZES", [1 << 12, 1 << 14, 1 << 16])
    monkeypatch.setattr(bandwidth, "LEAST", 1 << 16)
    sizes, rates = zip(*bandwidth.rates(threads, runs=1), strict=True)
    assert list(sizes) == bandwidth.SIZES
    assert list(rates) == sorted(rates, reverse=True) and rates[-1] > 0


# --- the program -------------------------------------------------------------------------------


def speed(*arguments: str) -> str:
    """Run it as a user would; return what it prints."""
    process = subprocess.run(
        [sys.executable, "-m", "experiments.speed", *arguments, "--threads", "1"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in options.TELLING},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_a_run_writes_table_pictures_and_json_and_fills_a_document(tmp_path: Path) -> None:
    shapes = "1x3x8-4k3f,1x4x7x9-4k3s2g4+gelu"
    arguments = ["--quick", "--shapes", shapes, "--no-page-faults", "--repeats", "2"]
    title = options.parse_arguments([*arguments, "--threads", "1"]).title
    document = tmp_path / "performance.md"
    document.write_text(f"before\n<!-- speed: {title} -->\nold\n<!-- end of speed -->\nafter\n")
    where = ["--runs", str(tmp_path), "--name", "small", "--write", str(document)]
    out = speed(*arguments, *where)
    folder = tmp_path / "small"
    written = ["ratios.png", "report.html", "results.json", "roofline.png", "table.md"]
    assert sorted(os.listdir(folder)) == written
    report = (folder / "report.html").read_text()
    assert report.count("<svg ") == 2 and "<title>1x3x8-4k3f, NCHW, forward:" in report
    assert 'href="small/report.html"' in (tmp_path / "index.html").read_text()
    for picture in ("ratios.png", "roofline.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")

    results = json.loads((folder / "results.json").read_text())
    assert results["schema"] == 1 and results["title"] == title
    assert results["command"].startswith(
        "MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 "
        "python -m experiments.speed --quick "
    )
    assert torch.__version__.startswith(results["versions"]["torch"])
    assert results["machine"]["threads"] == 1 and results["machine"]["load_after"]
    assert all(c["arithmetic"] > 0 and c["copy"] > 0 for c in results["ceilings"])
    assert all(rate > 0 for c in results["ceilings"] for _, rate in c["memory"])
    operators = ("forward", "input gradient", "weight gradient", "block")
    measured = [(r["case"], r["layout"], r["operator"]) for r in results["rows"]]
    assert measured == [
        (s, la, o) for s in shapes.split(",") for la in options.LAYOUTS for o in operators
    ]
    for found in results["rows"]:
        spreads = found["measured"]["spreads"]
        assert list(spreads) == list(found["errors"]) == ["torch", "ours"]
        for spread in spreads.values():
            assert 0 < spread["first_quartile"] <= spread["median"] <= spread["third_quartile"]
            assert spread["samples"] == 2
        assert all(0 <= error < 1e-5 for error in found["errors"].values())
        assert found["share"] * spreads["ours"]["median"] == pytest.approx(
            found["floors"]["ours"]["seconds"]
        )
    assert len(results["summaries"]) == 4 * 3
    assert "| block | fastest | fastest of torch |" in out

    text = document.read_text()
    assert text.startswith(f"before\n<!-- speed: {title} -->\n")
    assert text.endswith("<!-- end of speed -->\nafter\n") and "old" not in text
    assert all((tmp_path / path).is_file() for path in images(text)) and len(images(text)) == 2
    assert "| 1x3x8-4k3f | channels_last |" in text
    assert " = ratio of eager torch to torch_convbp (share)." in text
    everything = (folder / "table.md").read_text()
    assert "| algorithm | floor | bound by |" in everything and "| depthwise |" in everything


def images(markdown: str) -> list[str]:
    return [line.partition("](")[2].rstrip(")") for line in markdown.splitlines() if "![" in line]


def test_a_sweep_says_what_auto_took_and_what_memory_a_call_takes(tmp_path: Path) -> None:
    chosen = ["--sweep", "--operators", "forward", "--layout", "NCHW", "--repeats", "1"]
    speed(*chosen, "--shapes", "1x32x32-32k3", "--runs", str(tmp_path), "--name", "sweep")
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert results["title"].startswith("core, some shapes, forward, NCHW, algorithms")
    (found,) = results["rows"]
    assert list(found["measured"]["spreads"]) == ["torch", "auto", "direct", "winograd"]
    assert [plan["algorithm"] for plan in found["plans"].values()] == [
        "winograd",
        "direct",
        "winograd",
    ]
    assert "| auto took | fastest | auto / fastest |" in (tmp_path / "sweep/table.md").read_text()
    if sys.platform == "linux":
        output = 4 * 32 * 32 * 32
        assert all(peak >= output for peak in found["peaks"].values()), found["peaks"]


@pytest.mark.usefixtures("one_thread")
def test_an_algorithm_that_is_not_possible_is_no_side_of_a_sweep() -> None:
    wanted = options.parse_arguments(["--sweep", "--quick", "--shapes", "1x32x16-32k3s3"])
    with bp.backends.cpu.flags(conv_algorithm="auto"):
        found = measure_row(wanted.cases[0], "block", make_setup(wanted, "NCHW"), wanted)
    assert list(found.measured.spreads) == list(found.errors) == ["torch", "auto", "direct"]
    assert [plan.algorithm for plan in found.plans.values()] == ["direct", "direct"]


@pytest.mark.parametrize("suite", SUITES)
def test_the_document_has_a_place_for_every_suite(suite: str) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert any(
        f"<!-- speed: {suite}{compiled}, without page faults -->\n" in text
        for compiled in ("", ", compiled")
    )

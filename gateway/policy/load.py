"""What does a policy file's text say, and at which line and column?"""

import errno
import math
import os
import pathlib
import re
import select
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from gateway.policy.problems import Path, PolicyError, Problem, dotted, place_in

PATIENCE = 5.0  # seconds
PIECE = 1 << 20  # bytes
MAX_DEPTH = 40
MAX_NODES = 50_000
MAX_PROBLEMS = 100  # who wrote a file with more of them reads no more
NULLS = ("", "~", "null", "Null", "NULL")
BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
TRAPS = {"on": "true", "yes": "true", "y": "true", "off": "false", "no": "false", "n": "false"}
# A leading zero makes a text: YAML 1.1 takes 016 for 14, YAML 1.2 for 16.
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]{0,39})(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][-+]?[0-9]{1,3})?")
VARIABLE = re.compile(
    r"(?P<escaped>\$\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]{0,1000}+)?\}|(?P<broken>\$\{)"
)
REPAIRS = {  # what to look at, by libyaml's own words
    "mapping values are not allowed in this context": "keys of a mapping begin in one column; quote text with `: `",
    "found character that cannot start any token": "indent by blanks, not by a tab; quote text that begins with this",
    "did not find expected alphabetic or numeric character": "quote text that begins with * or &",
    "did not find expected key": "keys of a mapping begin in one column; does each quote before have its end?",
    "could not find expected ':'": "a key has a `:` and a blank behind it",
}
PLAIN_TAGS = ("!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
Place = tuple[int, int]


class Loader(yaml.CSafeLoader):
    """Only composes nodes: the types of plain scalars are resolved in this file, by YAML 1.2's core schema."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # PyYAML's is a class variable, too


@dataclass(slots=True)
class Document:
    """A policy file as plain data. `values` and `keys`: line and column of a value or a key, from 1, by its path.

    `foreign`: the paths whose value came from the environment, `env`: no message may repeat it. `files`: the text of
    each file that was read, its own and those that it names; None: it could not be read. `others`: the files in other
    folders that it may name, None: any. `candidate`: the document of its candidate's file. `calibration`: the text of
    the calibration that it names; where it is given, it is read from no file.
    """

    file: str
    text: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    data: dict[str, Any] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    foreign: set[Path] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    files: dict[str, str | None] = field(default_factory=dict)
    candidate: "Document | None" = None
    others: Collection[str] | None = None
    calibration: str | None = None

    def blame(self, path: Path, message: str, *, key: bool = False) -> None:
        """Note a problem at the value of `path`, or at its key. Only the first at each path: others follow from it.
        Raises PolicyError, as `note`.
        """
        if dotted(path) not in {problem.path for problem in self.problems}:
            self.note(self.problem(path, message, key=key))

    def note(self, problem: Problem) -> None:
        """Add a problem. Raises PolicyError once there are MAX_PROBLEMS."""
        self.problems.append(problem)
        if len(self.problems) >= MAX_PROBLEMS:
            raise PolicyError(self.problems)

    def problem(self, path: Path, message: str, *, key: bool = False) -> Problem:
        """A problem with its place; one about something missing is placed at the mapping that lacks it."""
        found = self.keys.get(path) if key else self.values.get(path)
        parent = path
        while found is None and parent:
            parent = parent[:-1]
            found = self.keys.get(parent) or self.values.get(parent)
        line, column = found or (1, 1)
        return Problem(self.file, line, column, dotted(path), message)

    def beside(self, name: str) -> tuple[str, str]:
        """Path and text of the file `name`, relative to this one. Raises OSError, ValueError."""
        if "\0" in name:  # noted among `files` it would end who follows them
            raise OSError(errno.EINVAL, "no file's name has a NUL")
        path = str(pathlib.Path(self.file).parent / name)
        if self.others is not None and path not in self.others and elsewhere(name):
            raise PermissionError(errno.EACCES, "it is in another folder, which only the file in force may name")
        self.files[path] = None
        text = self.files[path] = contents(path).decode("utf-8")
        return path, text


def contents(path: str, patience: float = PATIENCE) -> bytes:
    """What is in a file, byte for byte. Raises OSError, also for a pipe from which nothing comes for `patience`
    seconds: who follows a file must not wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    ready, found = select.poll(), b""
    ready.register(descriptor, select.POLLIN)
    try:
        while ready.poll(patience * 1000):
            piece = os.read(descriptor, PIECE)
            if not piece:
                return found
            found += piece
    finally:
        os.close(descriptor)
    raise TimeoutError(errno.ETIMEDOUT, "nothing comes from this pipe")


def elsewhere(name: str) -> bool:
    """Whether a name leads out of the folder."""
    path = pathlib.PurePath(name)
    return path.is_absolute() or ".." in path.parts


def read(text: str, file: str, env: Mapping[str, str]) -> Document:
    """The file's data with `${VAR:-default}` filled in from `env`. Raises PolicyError when it is not a YAML mapping."""
    document = Document(file, text, env, files={file: text})
    node = compose(document)
    if not isinstance(node, yaml.MappingNode):
        told = "expected a mapping of keys and values" if node else "empty: a policy needs schema, tiers and rules"
        raise PolicyError([Problem(file, 1, 1, "", told)])
    reader = Reader(document)
    document.values[()] = place_of(node)
    document.data = reader.mapping(node, ())
    return document


def place_of(node: yaml.Node) -> Place:
    """Line and column of a node, from 1."""
    return place_at(node.start_mark)


def place_at(mark: Any) -> Place:
    """Line and column of one of YAML's marks, from 1; the start of the file for None."""
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def compose(document: Document) -> yaml.Node | None:
    """The one YAML document of the text. Raises PolicyError where it is not YAML, or nested too deeply."""
    try:
        refuse_deep(document)
        loader = Loader(document.text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        place = place_at(error.problem_mark or error.context_mark)
        what = f"not YAML: {worded(error)}"
    except yaml.reader.ReaderError as error:
        place = place_in(document.text.encode(), error.position)
        what = f"not YAML: {error.reason} (#x{error.character:02x})"
    except (yaml.YAMLError, UnicodeError) as error:
        place, what = (1, 1), f"not YAML: {str(error).splitlines()[0]}"
    raise PolicyError([Problem(document.file, *place, "", what)])


def worded(error: yaml.MarkedYAMLError) -> str:
    """What libyaml says, where that began which it then could not end, and what to look at."""
    told = str(error.problem)
    began = f"{error.context} (line {place_at(error.context_mark)[0]}), " if error.context else ""
    return f"{began}{told}; {REPAIRS[told]}" if told in REPAIRS else f"{began}{told}"


def refuse_deep(document: Document) -> None:
    """Raises PolicyError where collections are nested more than MAX_DEPTH deep, and what YAML's parser raises.
    Composing nodes recurses in C without a bound: 50,000 open brackets would end the process.
    """
    depth = 0
    for event in yaml.parse(document.text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise PolicyError([Problem(document.file, *place_at(event.start_mark), "", "nested too deeply")])


class Reader:
    """Turns nodes into data and notes where each stands."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def value(self, node: yaml.Node, path: Path) -> object:
        place = place_of(node)
        self.document.values[path] = place
        self.nodes += 1
        if len(path) > MAX_DEPTH or self.nodes > MAX_NODES:
            told = "nested too deeply" if len(path) > MAX_DEPTH else f"too long: more than {MAX_NODES} values"
            raise PolicyError([Problem(self.document.file, *place, dotted(path[:8]), told)])
        if node.tag not in PLAIN_TAGS:
            self.document.blame(path, f"a tag ({node.tag}) has no meaning here")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.scalar(node, path) if isinstance(node, yaml.ScalarNode) else None

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in node.value:
            place = place_of(key)
            if not isinstance(key, yaml.ScalarNode):
                self.document.note(Problem(self.document.file, *place, dotted(path), "a key must be text"))
                continue
            inner = (*path, key.value)
            if key.value in found:
                first = self.document.keys[inner][0]
                told = f"given twice, first on line {first}"
                self.document.note(Problem(self.document.file, *place, dotted(inner), told))
                continue
            self.document.keys[inner] = place
            found[key.value] = self.value(item, inner)
        return found

    def scalar(self, node: yaml.ScalarNode, path: Path) -> str | int | float | bool | None:
        text = self.filled(node.value, path)
        if node.style not in (None, ""):
            return text
        if text in NULLS:
            return None
        if text.lower() in TRAPS:
            self.document.blame(path, trap(text, shown=path not in self.document.foreign))
        return plain(text)

    def filled(self, text: str, path: Path) -> str:
        """`text` with its variables; `$${` stands for `${`."""
        if "${" not in text:
            return text
        pieces, end = [], 0
        for found in VARIABLE.finditer(text):
            pieces += [text[end : found.start()], self.variable(found, path)]
            end = found.end()
        return "".join([*pieces, text[end:]])

    def variable(self, found: re.Match[str], path: Path) -> str:
        if found["escaped"]:
            return "${"
        if found["broken"]:
            self.document.blame(path, "`${` opens no variable: write ${NAME} or ${NAME:-default}, or $${ for the text")
            return ""
        name, default = found["name"], found["default"]
        value = self.document.env.get(name)
        if value is None and default is None:
            self.document.blame(path, f"environment variable {name} is not set; ${{{name}:-default}} gives a default")
        if value is None or (default is not None and not value):
            return (default or "")[2:]
        self.document.foreign.add(path)
        return value.encode("utf-8", "replace").decode()


def trap(text: str, *, shown: bool) -> str:
    word = f"`{text}`" if shown else "the variable's value"
    quoted = f'it: "{text}"' if shown else "it"
    return f"{word} is a truth value to YAML 1.1 and text to YAML 1.2: write {TRAPS[text.lower()]}, or quote {quoted}"


def plain(text: str) -> str | int | float | bool:
    """The value of a scalar without quotes: true and false, decimal numbers, else text."""
    if text in BOOLS:
        return BOOLS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    number = float(text) if NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else text

"""The command line of `tiergate backends`: list, command, size."""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator

import yaml

from backends.recipes.fit import Budget, Wish, check
from backends.recipes.formats import compose, shell
from backends.recipes.hardware import GPUS, Impossible, hardware
from backends.recipes.kubernetes import objects
from backends.recipes.models import GGUF, MODELS
from backends.recipes.servers import GRAPHS, published
from backends.recipes.size import Load, parts, usd

STRATEGIES = {
    "dep": "data and expert parallel: throughput",
    "tep": "tensor and expert parallel: vLLM's default recipe",
    "tp": "tensor parallel: latency",
    "pd": "prefill and decode apart, on one host",
}
USUAL = ("h200x4", "h200x8", "b200x4", "b200x8", "b300x4", "b300x8", "gb200x4", "gb200x8", "gb300x4")
AMD = ("mi355x4", "mi355x8")
SMALL = ("rtx6000x8", "sparkx2", "stationx1")


class Plain(yaml.SafeDumper):
    """YAML without anchors and aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tiergate backends",
        description="Server commands for the tiers, and what they take.",
        epilog="What skipping experts buys: estimate. Checkpoints with fewer: convert, revert (--help after each).",
    )
    verbs = p.add_subparsers(dest="verb", required=True, metavar="{list,command,size,estimate,convert,revert}")
    every = verbs.add_parser("list", help="the recipes, with what they have room for")
    every.add_argument("--all", action="store_true", help="also those that cannot be, and why")
    every.add_argument("--json", action="store_true")
    command = verbs.add_parser("command", help="the command that serves a tier")
    command.add_argument("--tier", choices=sorted(MODELS), required=True)
    command.add_argument(
        "--hardware", required=True, help=f"of one replica: {', '.join(GPUS)} and how many (h200x8); ram128"
    )
    command.add_argument("--strategy", choices=STRATEGIES, default=None, help="default: dep; tp for SGLang")
    command.add_argument("--engine", choices=("vllm", "sglang", "llama.cpp"), default="vllm")
    command.add_argument("--context", type=int, help="tokens; else what the recipe says")
    command.add_argument("--think-max", action="store_true", help="refuse a context that cuts Think Max short")
    command.add_argument("--speculate", choices=("none", "mtp", "dspark"), default="none", help="dspark: later weights")
    command.add_argument("--graphs", choices=GRAPHS, help="how kernels are launched; else as the recipe does")
    command.add_argument("--quant", choices=GGUF, default="IQ2_XXS", help="llama.cpp: the file")
    command.add_argument("--format", choices=("shell", "compose", "k8s"), default="shell")
    command.add_argument("--first-gpu", type=int, default=0, help="compose: the host's GPU that is its first")
    size = verbs.add_parser("size", help="replicas and cost of a load, from measured figures")
    size.add_argument("--rps", type=float, required=True, help="requests a second")
    size.add_argument("--prompt", type=int, required=True, help="tokens")
    size.add_argument("--output", type=int, required=True, help="tokens")
    size.add_argument("--pro-share", type=float, default=0.25)
    size.add_argument("--cached", type=float, default=0.0, help="share of prompt tokens in the prefix cache")
    size.add_argument("--tpot", type=float, default=50.0, help="milliseconds a token may take")
    size.add_argument("--gpu-hour", type=float, default=3.0, help="US dollars; yours, not a figure of ours")
    size.add_argument("--core-hour", type=float, default=0.05, help="US dollars")
    size.add_argument("--json", action="store_true")
    return p


def wish_of(options: argparse.Namespace) -> Wish:
    """Raises Impossible for an unknown name of hardware."""
    usual = "tp" if options.engine == "sglang" else "dep"
    names = ("tier", "engine", "context", "think_max", "speculate", "graphs", "quant")
    own = {name: getattr(options, name) for name in names}
    return Wish(hardware=hardware(options.hardware), strategy=options.strategy or usual, **own)


def written(options: argparse.Namespace) -> str:
    """The command in the requested format. Raises Impossible."""
    wish = wish_of(options)
    if options.format == "shell":
        return shell(wish)
    if options.format == "compose":
        return dumped({"services": {f"vllm-{wish.tier}": compose(wish, options.first_gpu)}})
    return "---\n".join(dumped(one) for one in objects(wish))


def dumped(value: object) -> str:
    return yaml.dump(value, Dumper=Plain, sort_keys=False, width=1000)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A recipe of the list: GiB of one GPU, the context in tokens, and for how many requests of it there is room, or
    why it cannot be."""

    tier: str
    hardware: str
    strategy: str
    weights_gib: float | None = None
    kv_gib: float | None = None
    context: int | None = None
    room: float | None = None
    published: bool = False
    why_not: str | None = None

    def __str__(self) -> str:
        name = f"{self.tier:<6}{self.hardware:<11}{self.strategy:<9}"
        if self.why_not:
            return f"{name}  no: {self.why_not}"
        told = f"{name}{self.weights_gib:>9.0f}{self.kv_gib:>8.0f}{self.context:>9}  {self.room:.1f} requests"
        return told + "  published" * self.published


def rows(impossible: bool) -> Iterator[Row]:
    """The recipes; those that cannot be are left out unless `impossible`."""
    own = "ram128", "mac192"
    every = [*itertools.product(MODELS, USUAL + AMD + SMALL, STRATEGIES), *(("flash", name, "gguf") for name in own)]
    for tier, name, strategy in every:
        row = _row(tier, name, strategy)
        if impossible or not row.why_not:
            yield row


def _row(tier: str, name: str, strategy: str) -> Row:
    """`strategy`: one of STRATEGIES, or gguf, of llama.cpp's server."""
    gguf = strategy == "gguf"
    wish = Wish(tier, hardware(name), engine="llama.cpp") if gguf else Wish(tier, hardware(name), strategy)
    try:
        found: Budget = check(wish)
    except Impossible as error:
        return Row(tier, name, strategy, why_not=str(error))
    room = found.held * (wish.ranks if strategy in {"dep", "pd"} else 1) / wish.tokens
    return Row(tier, name, strategy, found.weights, found.kv, wish.tokens, room, not gguf and published(wish))


def listed(options: argparse.Namespace) -> str:
    """The output of `list`."""
    found = list(rows(options.all))
    if options.json:
        return json.dumps([dataclasses.asdict(row) for row in found], indent=2) + "\n"
    titles = f"{'weights':>9}{'KV GiB':>8}{'context':>9}  of that context, room for"
    notes = [
        "GiB are of one GPU; where nothing says `published`, only this arithmetic says that it fits",
        "hosted: no command; tiergate serve --policy policies/hosted.yaml, the key in the variable of api_key_env",
    ]
    notes += [f"{name}: {told}" for name, told in STRATEGIES.items()]
    return "\n".join([f"{'tier':<6}{'hardware':<11}{'strategy':<9}{titles}", *map(str, found), *notes, ""])


def sized(options: argparse.Namespace) -> str:
    """The output of `size`. Raises ValueError, as `parts`."""
    load = Load(options.rps, options.prompt, options.output, options.pro_share, options.cached, options.tpot / 1000)
    found = parts(load)
    cost = usd(load, found, options.gpu_hour, options.core_hour)
    if options.json:
        return json.dumps({"parts": [dataclasses.asdict(part) for part in found], "usd": cost}, indent=2) + "\n"
    lines = [f"{part.name:<9}{part.count:>5}  (busy: {part.busy:.2f})  {part.note}" for part in found]
    lines.append(f"GPUs     {sum(part.gpus for part in found):>5}")
    lines.append(f"US dollars: {cost['hour']:.2f} an hour, {cost['million']:.0f} a million requests at this load")
    lines.append(f"from DeepSeek's API: {cost['hosted_million']:.0f} a million requests at peak hours, else half")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = parser().parse_args()
    try:
        print({"list": listed, "command": written, "size": sized}[options.verb](options), end="")
    except (Impossible, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

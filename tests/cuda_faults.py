"""Generates faults in the CUDA kernels' sources, for cuda_mutations.py: whatever a rule makes of
every site that it matches in a function's body. None is chosen by hand.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILES = ("product.h", "step_forward.h", "step_backward.h", "loop.h", "launch.h", "cell.h",
         "numbers.h", "persistent.h", "persistent_pack.h", "persistent_forward.h",
         "persistent_backward.h", "persistent_guard.h", "persistent_lengths.h", "persistent_loop.h",
         "persistent_once.h", "exchange.h", "grid.h", "grid_forward.h", "grid_backward.h",
         "grid_loop.h", "latency.h", "latency_forward.h", "latency_backward.h", "latency.cu",
         "wavefront_forward.h", "wavefront_loop.h")

FUNCTION = re.compile(r"^ {0,6}(?:[\w:<>,&*\[\]]+[ *&]+)*\(?(\w+)\)?\([^;{}]*\)(?: const)?"
                      r"(?:\s*: [\w(), ]+)?\s*\{", re.M)
SCOPE = re.compile(r"^(?:struct|class) (\w+)", re.M)
NOT_CODE = re.compile(r"//[^\n]*|^#(?!pragma unroll)[^\n]*|__launch_bounds__\([^)]*\)|"
                      r"static_assert\([^;]*;|constexpr (?:int|bool) \w+ =[^;]*;", re.M)

# name:other of the same type, which is taken for it. Where a line has both, they change places.
OTHERS = dict(pair.split(":") for pair in """
p.h0:p.c0 p.c0:p.h0 p.hn:p.cn p.cn:p.hn p.dhn:p.dcn p.dcn:p.dhn p.dh0:p.dc0 p.dc0:p.dh0
p.b_ih:p.b_hh p.b_hh:p.b_ih p.carry_h:p.carry_c p.carry_c:p.carry_h q.h0:q.c0 q.c0:q.h0
q.dhn:q.dcn q.dcn:q.dhn q.dh0:q.dc0 q.dc0:q.dh0 q.carry_h:q.carry_c q.carry_c:q.carry_h
.h0:.c0 .c0:.h0 .hn:.cn .cn:.hn .b_ih:.b_hh .b_hh:.b_ih s.y:s.y_before s.c:s.c_before
s.y_before:s.y s.c_before:s.c p.y_before:p.y p.c_before:p.c p.begun:p.batch p.staying:p.begun
p.active:p.kept p.kept:p.active s.begun:s.batch s.staying:s.begun s.active:s.batch
gates.batch:gates.begun gates.staying:gates.begun p.y_row:p.c_row p.c_row:p.y_row
p.gates_row:p.y_row p.dy_row:p.y_row p.dh_row:p.y_row p.previous_row:p.hidden_row
p.hidden_row:p.previous_row p.dgates_row:p.gates_row p.projected_row:p.y_row p.y.row:p.c.row
p.c.row:p.y.row p.gates.row:p.y.row p.dy.row:p.y.row p.dh.row:p.dy.row
p.hidden.row:p.previous.row p.previous.row:p.hidden.row p.dgates.row:p.gates.row
p.w_hr:p.w_hh p.w_hh:p.w_hr p.w_hh_t:p.w_hr_t p.w_hr_t:p.w_hh_t at(before:at(t at(after:at(t
item.unit:item.batch item.batch:item.unit unit_warp:batch_warp batch_warp:unit_warp
unit0:batch0 batch0:unit0 d.da_r:d.da_z d.da_z:d.da_n d.da_n:d.dq d.dq:d.da_n cell.r:cell.z
cell.z:cell.r cell.i:cell.f cell.f:cell.g cell.g:cell.o cell.o:cell.i d.da_i:d.da_f d.da_f:d.da_g
d.da_g:d.da_o d.da_o:d.da_i p.gates_x:p.gates_h p.gates_h:p.gates_x p.dgates_x:p.dgates_h
p.dgates_h:p.dgates_x p.h_next:p.c_next p.c_next:p.h_next p.dh:p.dc projections:steps p.H:p.P
p.P:p.H .H:.P .P:.H q.H:q.P q.P:q.H all.:operands. operands.:all. NarrowForward:WideForward
WideForward:NarrowForward NarrowBackward:WideBackward WideBackward:NarrowBackward
kRowTiles:R stacked_.below:stacked_.above stacked_.above:stacked_.below p.unscale_input:p.unscale
""".split())
NAMES = re.compile("|".join(
    (r"(?<![\w.])" if name[0] != "." else r"(?<=\])") + re.escape(name) + r"(?!\w)"
    if name[-1] != "." else rf"\b{re.escape(name)}"
    for name in sorted(OTHERS, key=len, reverse=True)))
REGISTERS = re.compile(r"#pragma unroll\n *for \(int (\w|half|unit|item) = 0; \1\Z")
BOUNDS = {" < ": (" <= ", " + 1 < "), " <= ": (" < ", " + 1 <= "), " >= ": (" > ", " + 1 >= "),
          " > ": (" >= ", " > 1 + "), " == ": (" != ",), "std::min(": ("std::max(",),
          "std::max(": ("std::min(",)}


@dataclass(frozen=True)
class Fault:
    file: str
    line: int
    scope: str  # the struct or class
    function: str
    kind: str
    before: str
    after: str
    text: str  # of the whole file

    @property
    def key(self) -> str:
        """Its name, which outlives other changes of the file."""
        return f"{self.file} {self.function}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Edit:
    kind: str
    start: int
    end: int
    by: str
    told: tuple[str, str] = ("", "")  # instead of the changed line


def closing(code: str, at: int) -> int:
    """The bracket that ends what the one at `at` begins."""
    depth = 0
    for k in range(at, len(code)):
        depth += code[k] in "([{"
        depth -= code[k] in ")]}"
        if not depth:
            return k
    raise ValueError("brackets do not match")


def statements(code: str, start: int, end: int) -> list[tuple[int, int]]:
    """The statements between two braces, each from its first character to behind its last one."""
    found, at = [], start
    while match := re.compile(r"\S").search(code, at, end):
        begin = k = match.start()
        while code[k] != ";":
            if code[k] in "([{":
                brace = code[k] == "{"
                k = closing(code, k)
                behind = code[k + 1:end].lstrip()
                if brace and not behind.startswith((";", ",", ")", "else", "}")):
                    break
            k += 1
        at = k + 1
        found.append((begin, at))
    return found


def around(code: str, at: int) -> tuple[int, int]:
    """Within the innermost braces about a position."""
    depth, k = 0, at
    while depth >= 0:
        k -= 1
        depth += (code[k] == "}") - (code[k] == "{")
    return k + 1, closing(code, k)


def synchronisation(code: str, start: int, end: int) -> Iterator[Edit]:
    """Removes, weakens and moves every point where threads or copies are waited for."""
    kind = "synchronisation"
    site = re.compile(r"(__syncthreads|__syncwarp|wait_copies<[^>]*>|commit_copies|grid_sync|"
                      r"group_sync|sync_all<Shape>|mbarrier_\w+|cluster_(?:sync|arrive|wait))\([^;]*\);")
    for match in site.finditer(code, start, end):
        text, (a, b) = match.group(), match.span()
        yield Edit(kind, a, b, ";", (text, "nothing"))
        weaker = {"__syncthreads": "__syncwarp();", "commit_copies": f"{text} {text}",
                  "wait_copies": re.sub(r"<(.*)>", r"<\1 + 1>", text)}
        yield from (Edit(kind, a, b, by) for name, by in weaker.items() if text.startswith(name))
        inner = around(code, a)
        inside, outside = (statements(code, *span) for span in (inner, around(code, inner[0] - 1)))
        k = next(k for k, (x, y) in enumerate(inside) if x <= a < y)
        a, b = inside[k]  # with its condition, if it has one
        moved = code[a:b]
        whole = [(x, y) for x, y in outside if x < a < y] if inner[0] > start else []
        for begin, _ in [inside[k - 1]] if k else whole:
            yield Edit(kind, begin, b, f"{moved}\n{code[begin:a]}",
                       (text, f"before {first(code, begin)}"))
        for begin, behind in inside[k + 1:k + 2] or whole:
            yield Edit(kind, a, behind, f"{code[b:behind]}\n{moved}",
                       (text, f"behind {first(code, begin)}"))


def first(code: str, at: int) -> str:
    return " ".join(code[at:code.index("\n", at)].split())


def bounds(code: str, start: int, end: int) -> Iterator[Edit]:
    """One more and one less, but for loops over registers."""
    for match in re.compile("|".join(map(re.escape, BOUNDS))).finditer(code, start, end):
        if not REGISTERS.search(code, start, match.start()):
            for by in BOUNDS[match.group()]:
                yield Edit("bound", *match.span(), by)
    for match in re.compile(r"for \(int64_t \w+ = (0);").finditer(code, start, end):
        yield Edit("bound", *match.span(1), "1")


def offsets(code: str, start: int, end: int) -> Iterator[Edit]:
    kind = "offset"
    for match in re.compile(r" [+-] ([12])\b(?! *<)").finditer(code, start, end):
        yield Edit(kind, *match.span(1), str(int(match[1]) - 1))
        yield Edit(kind, *match.span(1), str(int(match[1]) + 1))
    index = re.compile(r"\b(?:at|b|u|k|row|part|unit0|batch0|of|unit|before|after|t|split|K|next|"
                       r"stages?|w_row|a_row|item) = ([^;,]*)(?=[;,])")
    for match in index.finditer(code, start, end):
        yield Edit(kind, *match.span(1), match[1] + " + 1")
    if re.search(r"__device__ int \w+\(.*\Z", code[:start]):
        for match in re.compile(r"return ([^;]*);").finditer(code, start, end):
            yield Edit(kind, *match.span(1), match[1] + " + 1")
    stores = re.compile(r"access\.store\((.*?)(?=, \w+(?:\[\w+\])?\))")
    for match in stores.finditer(code, start, end):
        yield Edit(kind, *match.span(1), match[1] + " + 1")


def gates(code: str, start: int, end: int) -> Iterator[Edit]:
    """Gates, units of a pair and halves by literal number."""
    for match in re.compile(r"^[^\n[]*\[([0-3])\]", re.M).finditer(code, start, end):
        other = {"0": "1", "1": "0", "2": "1", "3": "2"}[match[1]]
        yield Edit("exchange", *match.span(1), other)
    for match in re.compile(r"\b([23]) \* (?=H|p\.units|p\.H)").finditer(code, start, end):
        yield Edit("exchange", *match.span(1), str(int(match[1]) - 1))


def exchanges(code: str, start: int, end: int) -> Iterator[Edit]:
    """In every line the first name that another may stand for; both, where it has both."""
    for line in re.compile(r"[^\n]+").finditer(code, start, end):
        text = line.group()
        match = NAMES.search(text)
        if match and text[0] != "#":
            name, other = match.group(), OTHERS[match.group()]
            change = {name: other, other: name}
            if other not in NAMES.findall(text):
                a = line.start() + match.start()
                yield Edit("exchange", a, a + len(name), other)
            else:
                parts = re.split(f"({NAMES.pattern})", text)
                by = "".join(change.get(part, part) for part in parts)
                yield Edit("exchange", *line.span(), by)


# Of the exchange between layers that walk at the same time: words that count as there before they
# are, or are not marked as missing; the wrong step, tile or layer; warps that take the wrong part;
# clusters that take their places in another order than that in which they begin.
BETWEEN_LAYERS = {
    r"word\[\d\] == ~0u": "false",
    r"0xff": "0",
    r"size_t\(size\)(?= \* sizeof)": "size_t(size - 1)",
    r"\bk(?= \* stacked_\.step)": "(k + 1)",
    r"(?<=kColumns \+ )tile": "0",
    r"place_\.batch0(?= / Shape)": "0",
    r"\bl(?= \* T \* step)": "0",
    r"walks\[l\]": "walks[0]",
    r"place_\.part < kInputWarps": "place_.part >= kInputWarps",
    r"place_\.part - kInputWarps": "place_.part",
    r"place_\.part(?= \* kOfWarp)": "0",
    r"kInputWarps(?=, kShape\.split\))": "0",
    r"(?<=0, )kInputWarps\)": "kShape.split)",
    r"column / 8(?=\))": "0",
    r"slot % 2": "0",
    r"take_place<Shape>\(all\.begun\)": "int(blockIdx.x) / Shape::kCluster",
    r"(?<=map_shared_rank\(place, )0": "1",
    r"place % all\.clusters": "0",
    r"p\[l\]\.w_ih": "p[l].w_hh",
    r"pack\.before = 0": "pack.before += 0",
    r"pack\.unscale \+=": "pack.unscale += 0 *",
    r"4 \+ G \+ g": "4 + g",
    r"layer\.I = 0": "layer.I += 0",
    r"guarded\.count = count": "guarded.count = count - 1",
    r" \|\| outside": "",
}


def protocol(code: str, start: int, end: int) -> Iterator[Edit]:
    """Of the exchange inside a cluster or the grid: a single buffer; wrong counts of bytes and of
    arrivals; wrong marks, or none; the wrong peer; a block that leaves a step early. And of the
    exchange between layers."""
    kind = "protocol"
    for match in re.compile(r"(\bk|\(k [-+] 1\)) % 2").finditer(code, start, end):
        yield Edit(kind, *match.span(), match[1] + " * 0")
    counts = re.compile(r"mbarrier_(?:arrive_expect|init)\([^;]*, ([^,;]+)\);")
    for match in counts.finditer(code, start, end):
        for change in (" + 16", " - 16", " + 1"):
            yield Edit(kind, *match.span(1), match[1] + change)
    for match in re.compile(r"store_async\([^;]*, ([^,;]+)\);").finditer(code, start, end):
        yield Edit(kind, *match.span(1), f"({match[1]}) ^ 1")
    for match in re.compile(r"(?<=[( ])(?:buffer|parity)(?= \*|;)").finditer(code, start, end):
        yield Edit(kind, *match.span(), "0")
    ends = re.compile(r"(steps\(\)|p_\.T)(?=; }, place_\.tiles,|; \+\+k\))")
    for match in ends.finditer(code, start, end):
        yield Edit(kind, *match.span(), f"{match[1]} - (place_.rank == 1)")
    for match in re.compile(r"state % 2").finditer(code, start, end):
        yield Edit(kind, *match.span(), "0")
    for match in re.compile(r"__any_sync\(~0u, (.*)\)\)").finditer(code, start, end):
        yield Edit(kind, *match.span(1), f"threadIdx.x == 7 && {match[1]}")
        yield Edit(kind, *match.span(1), "false")
    marks = {r"word\[\w\] != mark\b": "false", r"\bmark\(k\)(?! \{)": "0", r"k / 2 % 2": "0",
             r"& ~1u": "& ~0u", r"(?<=uint32_t\(state) \+ 1": " + 2", r"(?<=1\] = )1;": "2;"}
    for pattern, by in (marks | BETWEEN_LAYERS).items():
        for match in re.compile(pattern).finditer(code, start, end):
            yield Edit(kind, *match.span(), by)
    for match in re.compile(r"given\([^()]*?, (place_\.rank)\b").finditer(code, start, end):
        yield Edit(kind, *match.span(1), "(place_.rank ^ 1)")


RULES = (synchronisation, protocol, bounds, offsets, gates, exchanges)


def faults(source: Path) -> Iterator[Fault]:
    file, text = source.name, source.read_text()
    code = NOT_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    seen: dict[str, int] = {}
    end = 0
    for function in FUNCTION.finditer(code):
        if function.start() < end or function[1] in ("if", "for", "while"):
            continue
        start, end = function.end(), closing(code, function.end() - 1)
        inside = function.group().startswith(" ")
        scope = ["", *SCOPE.findall(code, 0, start)][-1] if inside else ""
        for rule in RULES:
            for edit in rule(code, start, end):
                changed = text[:edit.start] + edit.by + text[edit.end:]
                a = text.rindex("\n", 0, edit.start) + 1
                b, c = text.index("\n", edit.start), changed.index("\n", edit.start)
                before, after = (" ".join(x.split("//")[0].split())
                                 for x in (text[a:b], changed[a:c]))
                if edit.told[0]:
                    before, after = edit.told
                fault = Fault(file, text.count("\n", 0, a) + 1, scope, function[1], edit.kind,
                              before, after, changed)
                seen[fault.key] = seen.get(fault.key, 0) + 1
                if seen[fault.key] > 1:
                    fault = Fault(**{**vars(fault), "after": f"{fault.after} #{seen[fault.key]}"})
                yield fault

"""The resource index: format, create, look up, update, delete, rebuild."""

from __future__ import annotations

from tests.daemon import areas, wire
from tests.daemon.scripts.common import SPACE, lease, prepare
from tests.daemon.stage import MIB, Differs, Host, Stage
from tests.daemon.wire import Cmd, rentry, request, rindex

AT = 4 * MIB
NO_LOCKSPACE, ADD, REMOVE = 0x1, 0x10000, 0x20000


def index(stage: Stage) -> None:
    """Every index command, right and wrong."""
    host = stage.host("one")
    path = prepare(stage, host, 1)
    with path.open("r+b") as file:
        file.truncate(40 * MIB)
    place = rindex(SPACE, path, AT)

    def ask(step: str, cmd: int, entry: bytes | None = None, **more: int) -> None:
        host.ask(step, request(cmd, place + (entry or b""), **more))

    look, up = Cmd.LOOKUP_RINDEX, Cmd.UPDATE_RINDEX
    create, delete = Cmd.CREATE_RESOURCE, Cmd.DELETE_RESOURCE
    ask("lookup before the format", look, rentry("a"))
    ask("create before the format", create, rentry("a"))
    for step, flags in {"no flags": 0, "sector alone": 0x100, "impossible": 0x120}.items():
        host.ask(
            f"format, {step}", request(Cmd.FORMAT_RINDEX, rindex(SPACE, path, AT, flags=flags))
        )
    host.ask("format without a file", request(Cmd.FORMAT_RINDEX, rindex(SPACE, "/nowhere", AT)))
    host.ask("format, unaligned", request(Cmd.FORMAT_RINDEX, rindex(SPACE, path, AT + 512)))
    host.ask("format", request(Cmd.FORMAT_RINDEX, rindex(SPACE, path, AT, max_resources=16)))
    stage.disk("index", path, AT)
    stage.disk("its lease", path, AT + MIB)
    ask("first free", look, rentry())
    ask("create ra", create, rentry("ra"), data=0, data2=5)
    stage.disk("ra", path, AT + 2 * MIB)
    ask("create rb", create, rentry("rb"))
    stage.disk("index with two", path, AT)
    ask("by name", look, rentry("rb"))
    ask("by offset", look, rentry("", AT + 2 * MIB))
    ask("by both", look, rentry("ra", AT + 2 * MIB))
    ask("by both that differ", look, rentry("ra", AT + 3 * MIB))
    ask("unknown name", look, rentry("rx"))
    ask("a free slot", look, rentry("", AT + 9 * MIB))
    ask("unaligned", look, rentry("", AT + 100))
    ask("next free", look, rentry())
    ask("add without name", up, rentry("", AT + 6 * MIB), flags=ADD)
    ask("add without offset", up, rentry("ru"), flags=ADD)
    ask("update without a flag", up, rentry("ru", AT + 6 * MIB))
    ask("add", up, rentry("ru", AT + 6 * MIB), flags=ADD)
    ask("add where one is", up, rentry("rv", AT + 6 * MIB), flags=ADD)
    ask("remove without offset", up, rentry("ru"), flags=REMOVE)
    ask("remove", up, rentry("", AT + 6 * MIB), flags=REMOVE)
    stage.disk("index after updates", path, AT)
    ask("delete", delete, rentry("ra"))
    ask("delete again", delete, rentry("ra"))
    ask("create rc", create, rentry("rc"))
    ask("delete by name and another offset", delete, rentry("rc", AT + 9 * MIB))
    stage.disk("ra deleted", path, AT + 2 * MIB)
    host.ask(
        "acquire what is deleted",
        request(Cmd.READ_RESOURCE, wire.lease(SPACE, "ra", path, AT + 2 * MIB)),
    )
    ask("rebuild", Cmd.REBUILD_RINDEX)
    stage.disk("index rebuilt", path, AT)
    ask("lookup without lockspace", look, rentry("rb"), flags=NO_LOCKSPACE)
    host.ask("another lockspace", request(look, rindex("XX", path, AT) + rentry("rb")))
    other = rindex("XX", path, AT) + rentry("rb")
    host.ask("another lockspace, not looked at", request(look, other, flags=NO_LOCKSPACE))
    host.ask("unaligned index", request(look, rindex(SPACE, path, AT + 512) + rentry("rb")))
    host.ask("a lease is no index", request(look, rindex(SPACE, path, MIB) + rentry("rb")))
    host.ask("no file", request(look, rindex(SPACE, "/nowhere", AT) + rentry("rb")))
    for step, at, value in (
        ("version", 4, 0x00090001),
        ("offset field", 24, 5 * MIB),
    ):
        kept = areas.read(path, AT, 512)
        areas.write(path, AT + at, value.to_bytes(8 if at == 24 else 4, "little"))
        ask(f"damaged {step}", look, rentry("rb"))
        areas.write(path, AT, kept)
    for number in range(8):
        ask(f"create {number}", create, rentry(f"n{number}"))
    _duplicate(host, place)
    host.ask("ordinary resources are read as well", request(Cmd.READ_RESOURCE, lease(path, 1)))


def _duplicate(host: Host, place: bytes) -> None:
    host.ask(
        "create rb again",
        request(Cmd.CREATE_RESOURCE, place + rentry("rb")),
        differs=Differs(
            "3.8.5 enters a name twice, and nobody can tell the two apart (12)",
            real=[
                "result 0, data2 0, length 96",
                "  rentry '' offset=15728640 flags=0 unused=0",
                "then open",
            ],
            ours=[
                "result -17, data2 0, length 96",
                "  rentry '' offset=0 flags=0 unused=0",
                "then open",
            ],
        ),
    )


SCRIPTS = (index,)

"""Random command lines of sanlock(8): options in any order, right, wrong and missing."""

from __future__ import annotations

from typing import Final

from tests.daemon.calls.calls import Command
from tests.daemon.calls.drawing import MIB, Draw

_CLIENT: Final[dict[bytes, int]] = {
    b"init": 12,
    b"write": 2,
    b"read": 14,
    b"align": 3,
    b"format": 5,
    b"create": 5,
    b"delete": 4,
    b"lookup": 6,
    b"update": 6,
    b"rebuild": 3,
    b"status": 2,
    b"host_status": 2,
    b"renewal": 2,
    b"gets": 2,
    b"version": 1,
    b"inq_lockspace": 2,
    b"rem_lockspace": 1,
    b"set_config": 2,
    b"set_event": 2,
    b"examine": 2,
    b"acquire": 2,
    b"release": 2,
    b"convert": 2,
    b"inquire": 2,
    b"request": 3,
    b"nonsense": 1,
}
_DIRECT: Final[dict[bytes, int]] = {
    b"init": 12,
    b"read_leader": 14,
    b"dump": 12,
    b"next_free": 4,
    b"format": 5,
    b"lookup": 6,
    b"update": 6,
    b"rebuild": 3,
    b"nonsense": 1,
}
# Which options an action looks at.
_USES: Final[dict[bytes, bytes]] = {
    b"init": b"srZAonmz",
    b"write": b"srZA",
    b"read": b"srZADh",
    b"align": b"s",
    b"format": b"xZA",
    b"create": b"xe",
    b"delete": b"xe",
    b"lookup": b"xe",
    b"update": b"xez",
    b"rebuild": b"x",
    b"status": b"o",
    b"host_status": b"s",
    b"renewal": b"s",
    b"gets": b"h",
    b"inq_lockspace": b"s",
    b"rem_lockspace": b"s",
    b"set_config": b"suO",
    b"set_event": b"siged",
    b"examine": b"sr",
    b"acquire": b"rpnPO",
    b"release": b"rsapO",
    b"convert": b"rp",
    b"inquire": b"pD",
    b"request": b"rf",
    b"read_leader": b"srZA",
    b"dump": b"fZA",
    b"next_free": b"ZA",
}
_LETTERS: Final = b"QRHLSFatwhlobnmpigedfsrxUGOPuzZAD"


class Lines:
    """Command lines from a draw."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def client(self) -> Command:
        """Return a line of `sanlock client`."""
        action = self.draw.weighted(_CLIENT)
        words = [b"client", action, *self._options(action, direct=False)]
        if self.draw.chance(0.05):
            words = words[1:]
        return Command(tuple(words))

    def direct(self) -> Command:
        """Return a line of `sanlock direct`."""
        action = self.draw.weighted(_DIRECT)
        words = [b"direct", action]
        if action in (b"dump", b"next_free") and self.draw.chance(0.95):
            words.append(self._dumped(action))
        return Command((*words, *self._options(action, direct=True)))

    def _options(self, action: bytes, *, direct: bool) -> list[bytes]:
        draw = self.draw
        letters = [bytes([letter]) for letter in _USES.get(action, b"sr")]
        options: list[list[bytes]] = []
        for letter in letters:
            needed = letter in (b"x", b"p") or (letter in b"sr" and b"s" not in letters)
            if draw.chance(0.9 if needed else 0.4):
                options.append(self._option(letter))
                if letter == b"r" and draw.chance(0.1):
                    options += [self._option(b"r") for _ in range(draw.one((1, 2, 8)))]
        # Sizes without a lockspace or resource crash the original, and half of them do not help.
        named = {option[0] for option in options}
        if (b"-s" in letters or b"-r" in letters) and not named & {b"-s", b"-r"}:
            options = [option for option in options if option[0] not in (b"-Z", b"-A")]
        if draw.chance(0.95) and named & {b"-Z", b"-A"}:
            options = [option for option in options if option[0] not in (b"-Z", b"-A")]
            options += self._sizes()
        if draw.chance(0.05):
            # Not one that is there: of two the original may keep a part of the first.
            others = _LETTERS.translate(None, b"F" + b"".join(named).replace(b"-", b""))
            options.append(self._option(bytes([draw.one(others)])))
        if draw.chance(0.02):
            options.append([draw.one((b"--", b"-", b"x", b"--help", b"-zz", b"-%", b"-s"))])
        draw.random.shuffle(options)
        return [word for option in options for word in option]

    def _option(self, letter: bytes) -> list[bytes]:
        draw = self.draw
        match letter:
            case b"D":
                return [b"-D"]
            case b"s":
                value = self.lockspace()
            case b"r":
                value = self.resource()
            case b"x":
                value = self.rindex()
            case b"e":
                value = self.rentry()
            case b"Z":
                value = draw.one((b"512", b"512", b"4096", b"4096", b"0", b"1", b"512x"))
            case b"A":
                value = draw.one((b"1M", b"1M", b"1M", b"2M", b"4M", b"8M", b"3M", b"1048576"))
            case b"o":
                value = draw.one((b"1", b"2", b"10", b"0", b"-1", b"300", b"p", b"s", b"x"))
            case b"p":
                value = draw.one((b"1", b"0", b"-1", b"99999999", b"x"))
            case b"f" | b"h" | b"a" | b"P" | b"O" | b"u" | b"z":
                value = draw.one((b"0", b"1", b"1", b"2", b"x"))
            case _:
                value = self.number()
        return [b"-" + letter, value]

    def _sizes(self) -> list[list[bytes]]:
        """Return the options for sizes that fit to each other."""
        flags = self.draw.sizes(0.0)
        if not flags:
            return []
        sector_size = b"4096" if flags & 0x200 else b"512"
        return [[b"-Z", sector_size], [b"-A", b"%dM" % (flags >> 4 & 0xF)]]

    def number(self) -> bytes:
        """Return a number, or what is none."""
        draw = self.draw
        if draw.chance(0.7):
            return b"%d" % draw.small(0.4)
        return draw.one((b"", b"x", b"-1", b"-5", b"0x10", b"010", b" 7", b"7x", b"1 2", b"+3"))

    def _path(self) -> bytes:
        """Return a path as it must be written between colons, more or less."""
        draw = self.draw
        path = draw.path(0.1)
        if draw.chance(0.9):
            path = path.replace(b"\\", b"\\\\").replace(b":", b"\\:")
        if draw.chance(0.05):
            path = path.replace(b" ", b"\\ ").replace(b"/one", b"/o\\ne")
        return path

    def _name(self, name: bytes) -> bytes:
        name = name.partition(b"\0")[0].replace(b"\n", b"")
        return name.replace(b":", b"\\:") if self.draw.chance(0.8) else name

    def _offset(self, *, may_be_mega: bool = True) -> bytes:
        draw = self.draw
        offset = draw.offset(0.1)
        # Behind another offset the original takes an M for that of the first.
        if may_be_mega and offset % MIB == 0 and 0 < offset < 10 * MIB and draw.chance(0.2):
            return b"%dM" % (offset // MIB)
        if draw.chance(0.03):
            return draw.one((b"", b"x", b"-1", b"0x100000", b" 0", b"+1048576", b"1048576x", b"01"))
        return b"%d" % offset

    def lockspace(self) -> bytes:
        """Return a lockspace."""
        draw = self.draw
        fields = [self._name(draw.space()), b"%d" % draw.host_id(), self._path(), self._offset()]
        return self._cut(fields)

    def resource(self) -> bytes:
        """Return a resource."""
        draw = self.draw
        fields = [self._name(draw.space()), self._name(draw.resource())]
        number = draw.one((1, 1, 1, 1, 1, 1, 2, 3, 4, 5))
        for _ in range(number):
            fields += [self._path(), self._offset(may_be_mega=number == 1)]
        if draw.chance(0.2):
            fields.append(draw.one((b"SH", b"0", b"5", b"SHARED", b"0x10", b"010", b"x", b"")))
        return self._cut(fields)

    def rindex(self) -> bytes:
        """Return an index."""
        return self._cut([self._name(self.draw.space()), self._path(), self._offset()])

    def rentry(self) -> bytes:
        """Return an entry of an index."""
        draw = self.draw
        name = b"" if draw.chance(0.2) else draw.resource(0.05).partition(b"\0")[0]
        if draw.chance(0.5):
            return name
        # Not before the first place of an index: the original writes in front of its buffer then.
        return name + b":%d" % (draw.one((24, 32, 40, 48)) * MIB)

    def _cut(self, fields: list[bytes]) -> bytes:
        draw = self.draw
        if draw.chance(0.04):
            fields = fields[: draw.random.randrange(len(fields) + 1)]
        if draw.chance(0.02):
            fields.append(draw.one((b"", b"1", b"x")))
        text = b":".join(fields)
        return text + b"\\" if draw.chance(0.01) else text

    def _dumped(self, action: bytes) -> bytes:
        draw = self.draw
        fields = [draw.path(0.1)]
        if draw.chance(0.6):
            fields.append(self._offset())
            if action == b"dump" and draw.chance(0.6):
                fields.append(draw.one((b"0", b"512", b"1048576", b"1M", b"4M", b"25165824")))
        return b":".join(fields)

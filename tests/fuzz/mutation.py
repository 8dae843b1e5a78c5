"""Custom mutator of libFuzzer: alters the fields of valid messages, or the bytes of other inputs."""

import random
from typing import Any

import atheris
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

NUMBERS = (0, 1, 2, 3, 7, 8, 63, 64, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
WORDS = (
    "",
    " ",
    "a",
    "isogloss-static",
    "s",
    "\0",
    "\u200b",
    "\ufdd0",
    "\U0001f600" * 3,
    "e\u0301" * 40,
    "word " * 100,
)
REPEATS = (1, 2, 3, 17, 300)


def mutate(data: bytes, max_size: int, kinds: list[type[Message]], random_: random.Random) -> bytes:
    """Returns a mutated input, whose first byte selects the type of the message in the others."""
    if not data:
        return bytes([random_.randrange(256)])
    kind, message = kinds[data[0] % len(kinds)], None
    if random_.random() < 0.7:
        try:
            message = kind.FromString(data[1:])
        except DecodeError:
            message = None
    if message is None:
        return bytes(atheris.Mutate(data, max_size))
    for _ in range(random_.choice((1, 1, 2, 4))):
        change(message, random_)
    first = bytes([random_.randrange(256)]) if random_.random() < 0.05 else data[:1]
    return (first + message.SerializeToString())[:max_size]


def change(message: Message, random_: random.Random) -> None:
    """Changes a random field of a message or of a message in it."""
    if not message.DESCRIPTOR.fields:
        return
    field = random_.choice(message.DESCRIPTOR.fields)
    if random_.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        values: Any = getattr(message, field.name)
        if len(values) and random_.random() < 0.3:
            del values[random_.randrange(len(values)) :]
        elif field.message_type is None:
            values.extend([value_of(field, random_)] * random_.choice(REPEATS))
        else:
            change(values.add(), random_)
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        change(inner, random_)
    else:
        setattr(message, field.name, value_of(field, random_))


def value_of(field: FieldDescriptor, random_: random.Random) -> Any:  # noqa: PLR0911 - one for each type
    """Returns a random value for a field."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return random_.randbytes(random_.choice((0, 1, 4, 8, 16, 32, 64)))
        case FieldDescriptor.CPPTYPE_STRING:
            return random_.choice(WORDS)
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return random_.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return random_.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return random_.choice((0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 99, -1))
        case FieldDescriptor.CPPTYPE_INT32:
            return random_.choice((-(2**31), -1, *(number for number in NUMBERS if number < 2**31)))
        case FieldDescriptor.CPPTYPE_UINT32:
            return random_.choice([number for number in NUMBERS if number < 2**32])
        case FieldDescriptor.CPPTYPE_INT64:
            return random_.choice((-(2**63), -1, *NUMBERS))
        case _:
            return random_.choice(NUMBERS)

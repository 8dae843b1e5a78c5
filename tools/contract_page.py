"""The contract's reference, made of the proto's descriptors and comments."""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
    SourceCodeInfo,
)

from tools.markdown import anchor, code, paragraphs, prose, table

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-proto" / "bin" / "python"
CONTRACT = "isogloss/v1/embedding.proto"
PACKAGE, MESSAGES, ENUMS, SERVICES = 2, 4, 5, 6  # places in a file, as descriptor.proto numbers them
FIELDS, VALUES, METHODS = 2, 2, 2  # places in a message, an enum, a service

Described = DescriptorProto | EnumDescriptorProto | ServiceDescriptorProto
Place = tuple[int, ...]


def contract_page() -> str:
    """Returns the reference of every RPC, message, field and enum, in the order of the proto."""
    reference = Reference(described_contract())
    return "\n".join([f"# The contract: {reference.package}\n", reference.conventions(), *reference.sections()])


def described_contract() -> FileDescriptorProto:
    """Returns the proto's descriptor with its comments, as the generator's environment reads it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.binpb"
        subprocess.run([PYTHON, ROOT / "tools" / "contract.py", "image", file], check=True)
        image = FileDescriptorSet.FromString(file.read_bytes())
    return next(described for described in image.file if described.name == CONTRACT)


class Reference:
    """Writes a file of the contract as Markdown."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.package = file.package
        self._file = file
        self._places = {tuple(location.path): location for location in file.source_code_info.location}

    def conventions(self) -> str:
        """Returns what the file says at its head."""
        return paragraphs(self._comment((PACKAGE,)))

    def sections(self) -> Iterator[str]:
        """Yields a section for each service, message and enum, in the order of the file."""
        kinds: tuple[tuple[int, Sequence[Described]], ...] = (
            (SERVICES, self._file.service),
            (MESSAGES, self._file.message_type),
            (ENUMS, self._file.enum_type),
        )
        placed: list[tuple[Place, Described]] = [
            ((kind, number), item) for kind, items in kinds for number, item in enumerate(items)
        ]
        for place, item in sorted(placed, key=lambda both: self._first_line(both[0])):
            yield self._section(place, item)

    def _section(self, place: Place, item: Described) -> str:
        match item:
            case ServiceDescriptorProto():
                head, body = f"Service {item.name}", self._methods(place, item)
            case DescriptorProto():
                head, body = item.name, self._fields(place, item)
            case EnumDescriptorProto():
                head, body = item.name, self._values(place, item)
        return "\n".join(part for part in (f"## {head}\n", paragraphs(self._comment(place)), body) if part)

    def _methods(self, place: Place, service: ServiceDescriptorProto) -> str:
        sections = []
        for number, method in enumerate(service.method):
            asked, answered = self._link(method.input_type), self._link(method.output_type)
            asked = f"a stream of {asked}" if method.client_streaming else asked
            answered = f"a stream of {answered}" if method.server_streaming else answered
            comment = paragraphs(self._comment((*place, METHODS, number)))
            sections.append(f"### {method.name}\n\nTakes {asked}, returns {answered}.\n\n{comment}")
        return "\n".join(sections)

    def _fields(self, place: Place, message: DescriptorProto) -> str:
        rows = [
            (code(field.name), str(field.number), self._kind(field, message), self._meaning(field, place, number))
            for number, field in enumerate(message.field)
        ]
        return table(("Field", "Number", "Type", "Meaning"), rows) if rows else "No fields.\n"

    def _values(self, place: Place, enum: EnumDescriptorProto) -> str:
        rows = [
            (code(value.name), str(value.number), prose(self._comment((*place, VALUES, number))))
            for number, value in enumerate(enum.value)
        ]
        return table(("Value", "Number", "Meaning"), rows)

    def _kind(self, field: FieldDescriptorProto, message: DescriptorProto) -> str:
        named = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
        kind = self._link(named) if field.type_name else code(named)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"repeated {kind}"
        if field.proto3_optional:
            return f"optional {kind}"
        if field.HasField("oneof_index"):
            return f"{kind}, one of {code(message.oneof_decl[field.oneof_index].name)}"
        return kind

    def _link(self, full_name: str) -> str:
        name = full_name.removeprefix(f".{self.package}.")
        return code(full_name.removeprefix(".")) if "." in name else f"[{name}]({anchor(name)})"

    def _meaning(self, field: FieldDescriptorProto, place: Place, number: int) -> str:
        comment = self._comment((*place, FIELDS, number)).strip()
        return prose(comment.removeprefix(f"{field.name}: "))  # the column before says it

    def _comment(self, place: Place) -> str:
        location = self._places.get(place, SourceCodeInfo.Location())
        return "\n".join(filter(None, [location.leading_comments, location.trailing_comments]))

    def _first_line(self, place: Place) -> int:
        return self._places[place].span[0]

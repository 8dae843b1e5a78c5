"""Generates the reference page of the contract from the descriptors and comments of the proto."""

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
# A path in a descriptor is a sequence of field numbers of descriptor.proto and indexes.
PACKAGE, MESSAGES, ENUMS, SERVICES = 2, 4, 5, 6  # fields of FileDescriptorProto
FIELDS, ONEOFS = 2, 8  # fields of DescriptorProto
VALUES = 2  # field of EnumDescriptorProto
METHODS = 2  # field of ServiceDescriptorProto

Described = DescriptorProto | EnumDescriptorProto | ServiceDescriptorProto
DescriptorPath = tuple[int, ...]


def contract_page() -> str:
    """Returns the page: every RPC, message, field and enum value, in the order of the proto."""
    reference = Reference(described_contract())
    return "\n".join([f"# The contract: {reference.package}\n", reference.conventions(), *reference.sections()])


def described_contract() -> FileDescriptorProto:
    """Returns the descriptor of the proto with its comments, compiled in the generator's environment."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.binpb"
        subprocess.run([PYTHON, ROOT / "tools" / "contract.py", "image", file], check=True)
        image = FileDescriptorSet.FromString(file.read_bytes())
    return next(described for described in image.file if described.name == CONTRACT)


class Reference:
    """Renders one proto file as Markdown."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.package = file.package
        self._file = file
        self._locations = {tuple(location.path): location for location in file.source_code_info.location}

    def conventions(self) -> str:
        """Returns the comment of the package statement, which has the conventions of the whole file."""
        return paragraphs(self._comment((PACKAGE,)))

    def sections(self) -> Iterator[str]:
        """Yields a section for each service, message and enum, in the order of the file."""
        kinds: tuple[tuple[int, Sequence[Described]], ...] = (
            (SERVICES, self._file.service),
            (MESSAGES, self._file.message_type),
            (ENUMS, self._file.enum_type),
        )
        items: list[tuple[DescriptorPath, Described]] = [
            ((kind, index), item) for kind, described in kinds for index, item in enumerate(described)
        ]
        for path, item in sorted(items, key=lambda pair: self._first_line(pair[0])):
            yield self._section(path, item)

    def _section(self, path: DescriptorPath, item: Described) -> str:
        match item:
            case ServiceDescriptorProto():
                head, body = f"Service {item.name}", self._methods(path, item)
            case DescriptorProto():
                head, body = item.name, self._fields(path, item)
            case EnumDescriptorProto():
                head, body = item.name, self._values(path, item)
        return "\n".join(part for part in (f"## {head}\n", paragraphs(self._comment(path)), body) if part)

    def _methods(self, path: DescriptorPath, service: ServiceDescriptorProto) -> str:
        sections = []
        for index, method in enumerate(service.method):
            request, response = self._link(method.input_type), self._link(method.output_type)
            request = f"a stream of {request}" if method.client_streaming else request
            response = f"a stream of {response}" if method.server_streaming else response
            comment = paragraphs(self._comment((*path, METHODS, index)))
            sections.append(f"### {method.name}\n\nTakes {request}, returns {response}.\n\n{comment}")
        return "\n".join(sections)

    def _fields(self, path: DescriptorPath, message: DescriptorProto) -> str:
        rows = [
            (
                code(field.name),
                str(field.number),
                self._type(field, message),
                prose(self._comment((*path, FIELDS, index))),
            )
            for index, field in enumerate(message.field)
        ]
        if not rows:
            return "No fields.\n"
        return "\n".join([*self._oneofs(path, message), table(("Field", "Number", "Type", "Meaning"), rows)])

    def _oneofs(self, path: DescriptorPath, message: DescriptorProto) -> Iterator[str]:
        for index, oneof in enumerate(message.oneof_decl):
            comment = self._comment((*path, ONEOFS, index))
            if comment:  # the oneof that protoc makes of an optional field has no comment
                yield f"One of {code(oneof.name)}: {prose(comment)}\n"

    def _values(self, path: DescriptorPath, enum: EnumDescriptorProto) -> str:
        rows = [
            (code(value.name), str(value.number), prose(self._comment((*path, VALUES, index))))
            for index, value in enumerate(enum.value)
        ]
        return table(("Value", "Number", "Meaning"), rows)

    def _type(self, field: FieldDescriptorProto, message: DescriptorProto) -> str:
        name = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
        shown = self._link(name) if field.type_name else code(name)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"repeated {shown}"
        if field.proto3_optional:
            return f"optional {shown}"
        if field.HasField("oneof_index"):
            return f"{shown}, one of {code(message.oneof_decl[field.oneof_index].name)}"
        return shown

    def _link(self, full_name: str) -> str:
        name = full_name.removeprefix(f".{self.package}.")
        return code(full_name.removeprefix(".")) if "." in name else f"[{name}]({anchor(name)})"

    def _comment(self, path: DescriptorPath) -> str:
        return self._locations.get(path, SourceCodeInfo.Location()).leading_comments

    def _first_line(self, path: DescriptorPath) -> int:
        return self._locations[path].span[0]

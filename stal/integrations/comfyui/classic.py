"""The nodes as every version of ComfyUI reads them."""

from __future__ import annotations

from typing import Any

from stal.integrations.comfyui.nodes import CATEGORY, NODES, Node, Port


def _class_of(node: Node) -> type:
    def input_types(cls: type) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
        for port in node.inputs:
            found["optional" if port.optional else "required"][port.name] = _widget(port)
        return found

    def run(self: object, **given: Any) -> tuple[Any, ...]:
        return node.function(**given)

    attributes = {
        "__doc__": node.description,
        "INPUT_TYPES": classmethod(input_types),
        "RETURN_TYPES": tuple(port.kind for port in node.outputs),
        "RETURN_NAMES": tuple(port.name for port in node.outputs),
        "FUNCTION": "run",
        "CATEGORY": CATEGORY,
        "DESCRIPTION": node.description,
        "run": run,
    }
    return type(node.id, (), attributes)


def _widget(port: Port) -> tuple[Any, dict[str, Any]]:
    options = dict(port.options)
    choices = options.pop("choices", None)
    return (port.kind if choices is None else choices), options


NODE_CLASS_MAPPINGS = {node.id: _class_of(node) for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.id: node.title for node in NODES}

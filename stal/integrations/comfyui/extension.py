"""The nodes in ComfyUI's V3 schema. Can be imported within a ComfyUI that has it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

from stal.integrations.comfyui.nodes import CATEGORY, NODES, Node, Port

_WIDGETS = {"INT": io.Int, "FLOAT": io.Float, "STRING": io.String, "COMBO": io.Combo}


def _class_of(node: Node) -> type:
    def define_schema(cls: Any) -> Any:
        return io.Schema(
            node_id=node.id,
            display_name=node.title,
            category=CATEGORY,
            description=node.description,
            inputs=[_input(port) for port in node.inputs],
            outputs=[
                # An output has the name of an input where it is the same thing, changed.
                io.Custom(port.kind).Output(f"out_{port.name}", display_name=port.name)
                for port in node.outputs
            ],
        )

    def execute(cls: Any, /, **given: Any) -> Any:
        return io.NodeOutput(*node.function(**given))

    attributes = {
        "__doc__": node.description,
        "__module__": __name__,
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
    }
    return type(node.id, (io.ComfyNode,), attributes)


def _input(port: Port) -> Any:
    options = dict(port.options)
    if "choices" in options:
        options["options"] = options.pop("choices")
    if "forceInput" in options:
        options["extra_dict"] = {"forceInput": options.pop("forceInput")}
    kind = _WIDGETS.get(port.kind) or io.Custom(port.kind)
    return kind.Input(port.name, optional=port.optional, **options)


async def _get_node_list(self: object) -> list[type]:
    return [_class_of(node) for node in NODES]


async def comfy_entrypoint() -> Any:
    """What ComfyUI asks a package of nodes for."""
    extension = type("StalExtension", (ComfyExtension,), {"get_node_list": _get_node_list})
    return extension()

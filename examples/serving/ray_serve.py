"""stal's server on many machines: replicas of one application behind one address, by Ray Serve.

    pip install "stal[app]" "ray[serve]"
    python examples/serving/ray_serve.py

Each replica has a model, an engine and a queue of its own, and refuses with 429 what it has no room
for; Ray sends a request to the replica that has the fewest. It is OpenAI's interface alone: what
the page draws is known to one replica. Ray's proxy listens at 127.0.0.1; to serve others, give a
key, `local=False`, and serve.start(http_options={"host": "0.0.0.0"}) before.
"""

from __future__ import annotations

from typing import Any

from ray import serve


def application(
    *,
    replicas: int = 2,
    cpus: float = 1,
    gpus: float = 0,
    model: str | None = None,
    device: str = "cpu",
    key: str | None = None,
    local: bool = True,
    max_rows: int = 16,
    queue: int = 64,
) -> Any:
    """What `serve.run` takes.

    replicas: how many, each with so many cpus and gpus.
    model, device: as in `stal.Pipeline.from_pretrained`.
    key, local, max_rows: as in `stal.app.server.create_app`.
    queue: pictures that a replica accepts at once.
    """
    if key is None and not local:
        raise ValueError("key must be given where others can reach the server")

    def build() -> Any:
        import stal
        from stal.app.server import create_app, limits_of

        pipe = stal.Pipeline.from_pretrained(model, device=device)
        limits = limits_of(pipe, max_rows=max_rows, queue=queue)
        return create_app(pipe, limits=limits, key=key, local=local, max_rows=max_rows)

    deployment = serve.deployment(serve.ingress(build)()).options(
        name="stal",
        num_replicas=replicas,
        # More than a queue, so that the replica itself says 429 and when to try again.
        max_ongoing_requests=4 * queue,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # Seconds in which a replica that is taken down draws what it has accepted.
        graceful_shutdown_timeout_s=60,
    )
    return deployment.bind()


if __name__ == "__main__":
    serve.run(application(), blocking=True)

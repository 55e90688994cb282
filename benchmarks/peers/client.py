"""The parent's side of a worker process."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import Missing

ROOT = Path(__file__).parents[2]
#: Read by numpy's BLAS, by ncnn, by torch and by whatever else uses OpenMP.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def environment(threads: int) -> dict[str, str]:
    """The parent's environment, with pools limited to `threads`.

    Compiled modules are kept, as an installation keeps them, even where the parent must not write any.
    """
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"TF_CPP_MIN_LOG_LEVEL": "3"}


class Worker:
    """A process that holds one peer. Between commands it is stopped, so that no idle thread of it spins."""

    def __init__(self, peer: str, threads: int = 1) -> None:
        self.peer = peer
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=ROOT,
            env=environment(threads),
        )

    def call(self, do: str, timeout: float = 600, **arguments: Any) -> Any:
        """Carries out a command. Raises Missing with the peer's reason, or if it died or took too long."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.send_signal(signal.SIGCONT)
            process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], timeout)
            line = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            line, ready = b"", [process.stdout]
        if not line:
            why = f"died with {self._died()}" if ready else f"took more than {timeout:.0f} s"
            self.close()
            raise Missing(f"{do}: {why}")
        process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        return answer["answer"]

    def _died(self) -> str:
        code = self._process.wait(10)
        self._stderr.seek(0)
        last = self._stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"{signal.Signals(-code).name if code < 0 else f'exit code {code}'} {' '.join(last)[:200]}"

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

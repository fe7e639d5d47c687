import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_serving_a_model_leaves_no_trace_of_a_telemetry_client(model_file: Path, tmp_path: Path) -> None:
    """Where ONNX Runtime reports to its maker, it keeps an identifier and a queue under the home directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    code = "import sys, pathlib, app.session as s; s.OnnxRunner.load(pathlib.Path(sys.argv[1]), 'cpu')"
    subprocess.run([sys.executable, "-c", code, str(model_file)], cwd=ROOT, env=environment, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []

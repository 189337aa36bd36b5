import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
import dashboard
names = [module.name for module in pkgutil.walk_packages(dashboard.__path__, "dashboard.")]
assert "dashboard.views.front" in names, names
for name in names:
    if name != "dashboard.app":  # runs the app on import
        importlib.import_module(name)
print(sorted({"torch", "ray", "optuna"} & set(sys.modules)))
"""


def test_the_dashboard_reaches_no_torch_no_ray_and_no_optuna() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

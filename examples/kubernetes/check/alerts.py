"""Whether the alert rules are rules, and alert when they are to: by promtool (Debian package `prometheus`), where it is."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
RULES = HERE.parent / "components" / "prometheus" / "rules.yaml"


def fail():
    """Whether something is wrong; prints what."""
    promtool = shutil.which("promtool")
    if promtool is None:
        print("promtool is not here: the alert rules are checked by their schema alone")
        return False
    with tempfile.TemporaryDirectory() as folder:
        # promtool reads what the operator makes of the object.
        groups = Path(folder) / "rules.yaml"
        groups.write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text())["spec"]))
        tests = Path(folder) / "alerts.test.yaml"
        tests.write_text((HERE / "alerts.test.yaml").read_text())
        failed = False
        for arguments in (["check", "rules", str(groups)], ["test", "rules", str(tests)]):
            done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                print(f"FAILED  promtool {arguments[0]}: {done.stdout}{done.stderr}")
                failed = True
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["spec"]["groups"] for rule in group["rules"]}
    tested = {
        one["alertname"]
        for test in yaml.safe_load((HERE / "alerts.test.yaml").read_text())["tests"]
        for one in test["alert_rule_test"]
        if one["exp_alerts"]
    }
    for name in sorted(alerts - tested):
        print(f"FAILED  alert {name}: no test shows it")
    if not failed and alerts == tested:
        print(f"ok      {len(alerts)} alerts come when they are to")
    return failed or alerts != tested

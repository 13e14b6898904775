"""`python -m deploy.prometheus_rule`: the rules of deploy/prometheus as an object of the Prometheus operator.

In: the rule files that deploy/prometheus/prometheus.yml names. Out: deploy/kubernetes/monitoring/prometheus_rule.yaml,
which has the same groups and is not edited by hand.
"""

from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parent / "prometheus"
TARGET = Path(__file__).parent / "kubernetes" / "monitoring" / "prometheus_rule.yaml"
_HEADER = "# Made by `make manifests` from the rules in deploy/prometheus. Change them there.\n"
_LABELS = {"app.kubernetes.io/name": "feedrank", "app.kubernetes.io/component": "service"}


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines stay readable. What is written twice is written out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def prometheus_rule() -> str:
    """The object as YAML."""
    configuration = yaml.safe_load((RULES / "prometheus.yml").read_text(encoding="utf-8"))
    files = [yaml.safe_load((RULES / name).read_text(encoding="utf-8")) for name in configuration["rule_files"]]
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "feedrank", "labels": _LABELS},
        "spec": {"groups": [group for file in files for group in file["groups"]]},
    }
    return _HEADER + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(prometheus_rule(), encoding="utf-8")
    print(TARGET.relative_to(Path.cwd()) if TARGET.is_relative_to(Path.cwd()) else TARGET)

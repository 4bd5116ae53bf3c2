"""Write ``schemas.json``: what a DaskCluster and a DaskJob may hold, as JSON schemas.

From the definitions in the package dask-kubernetes 2026.3.0 (BSD-3-Clause), without descriptions:
``python -m tests.deploy_crds.make dask_kubernetes-2026.3.0-py3-none-any.whl``, with the file that
``pip download --no-deps dask-kubernetes==2026.3.0`` brings. The whole package, with the 40 that it
needs, would be much to install for one file, and gives every `dask` command a subcommand.
"""

import json
import sys
import zipfile
from pathlib import Path

import yaml

SCHEMAS = Path(__file__).with_name("schemas.json")
FOLDER = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds"


def closed(schema):
    """Turn what Kubernetes calls a schema into a JSON schema that allows no other properties."""
    kept = {}
    for name, value in schema.items():
        if name == "properties":
            kept[name] = {key: closed(inner) for key, inner in value.items()}
        elif name in ("items", "additionalProperties"):
            kept[name] = closed(value)
        elif name in ("type", "required", "enum", "minimum", "maximum", "pattern"):
            kept[name] = value
    if schema.get("format") == "int-or-string":
        kept["type"] = ["integer", "string"]
    if schema.get("nullable"):
        kept["type"] = [kept["type"], "null"]
    if "properties" in kept:
        kept.setdefault("additionalProperties", False)
    return kept


def resource(definition):
    """Make the schema of a whole resource from its definition."""
    (kind,) = definition["spec"]["versions"]
    schema = closed(kind["schema"]["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": f"{definition['spec']['group']}/{kind['name']}"},
        "kind": {"const": definition["spec"]["names"]["kind"]},
        "metadata": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": False,
        },
    }
    return schema | {"required": ["apiVersion", "kind", "metadata", "spec"]}


def main(wheel):
    with zipfile.ZipFile(wheel) as package:
        definitions = [
            yaml.safe_load(package.read(f"{FOLDER}/{name}.yaml"))
            for name in ("daskcluster", "daskjob")
        ]
    schemas = {each["spec"]["names"]["kind"]: resource(each) for each in definitions}
    pod = schemas["DaskCluster"]["properties"]["spec"]["properties"]["worker"]["properties"]["spec"]
    # Five times the same 47 kB.
    short = compact(schemas).replace(compact(pod), '{"$ref":"#/$defs/pod"}')
    SCHEMAS.write_text(compact({"$defs": {"pod": pod} | json.loads(short)}) + "\n")


def compact(schema):
    """Write a schema without blanks."""
    return json.dumps(schema, separators=(",", ":"))


if __name__ == "__main__":
    main(*sys.argv[1:])

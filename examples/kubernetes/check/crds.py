"""Schemas of the custom resources that our manifests use: only the fields that we set, and no others.

The published schemas of Kubernetes do not have them. Written from the references of cert-manager (cert-manager.io/v1)
and of the Prometheus operator (monitoring.coreos.com/v1). A field that is missing here is an error on purpose: look it
up before adding it.
"""

TEXT = {"type": "string", "minLength": 1}
DURATION = {"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?$", "minLength": 2}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}


def _object(required, **properties):
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def _resource(api_version, kind, spec):
    metadata = _object(["name"], name=NAME, namespace=NAME, labels=LABELS, annotations=LABELS)
    return _object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


CERTIFICATE = _object(
    ["secretName", "issuerRef"],
    secretName=NAME,
    issuerRef=_object(
        ["name"], name=NAME, kind={"enum": ["Issuer", "ClusterIssuer"]}, group={"const": "cert-manager.io"}
    ),
    isCA={"type": "boolean"},
    commonName={"type": "string", "maxLength": 64},
    dnsNames={"type": "array", "items": NAME, "minItems": 1},
    duration=DURATION,
    renewBefore=DURATION,
    usages={
        "type": "array",
        "items": {"enum": ["digital signature", "key encipherment", "cert sign", "server auth", "client auth"]},
    },
    privateKey=_object(
        [],
        algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]},
        size={"type": "integer"},
        encoding={"enum": ["PKCS1", "PKCS8"]},
        rotationPolicy={"enum": ["Never", "Always"]},
    ),
)

ISSUER = {
    **_object([], selfSigned=_object([]), ca=_object(["secretName"], secretName=NAME)),
    "minProperties": 1,
    "maxProperties": 1,
}

SERVICE_MONITOR = _object(
    ["selector", "endpoints"],
    selector=_object(["matchLabels"], matchLabels=LABELS),
    endpoints={
        "type": "array",
        "minItems": 1,
        "items": _object(["port"], port=TEXT, path=TEXT, interval=DURATION, scrapeTimeout=DURATION),
    },
)

PROMETHEUS_RULE = _object(
    ["groups"],
    groups={
        "type": "array",
        "minItems": 1,
        "items": _object(
            ["name", "rules"],
            name=TEXT,
            interval=DURATION,
            rules={
                "type": "array",
                "minItems": 1,
                "items": {
                    **_object(
                        ["expr"],
                        alert=TEXT,
                        record=TEXT,
                        expr=TEXT,
                        labels=LABELS,
                        annotations=LABELS,
                        **{"for": DURATION},
                    ),
                    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
                },
            },
        ),
    },
)

SCHEMAS = {
    ("cert-manager.io/v1", "Certificate"): CERTIFICATE,
    ("cert-manager.io/v1", "Issuer"): ISSUER,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
}
SCHEMAS = {(api, kind): _resource(api, kind, spec) for (api, kind), spec in SCHEMAS.items()}

"""Ways to break the manifests. Each has to be found, and by what it breaks: a check that finds nothing proves nothing.

An entry: the kustomization, what is done, and a part of the error that has to come of it.
"""

import copy


def survive(rendered, find_errors):
    """Breaks copies of the objects in every way. Whether a break was not found; prints which."""
    failed = False
    for number, (name, steps, part) in enumerate(MUTATIONS, 1):
        objects = copy.deepcopy(rendered[name])
        steps(Objects(objects))
        if objects == rendered[name]:
            print(f"FAILED  mutation {number} of {name} changes nothing ({part})")
            failed = True
            continue
        errors = find_errors(objects)
        if not any(part in error for error in errors):
            print(f"FAILED  mutation {number} of {name} was not found ({part}): {errors}")
            failed = True
    if not failed:
        print(f"ok      {len(MUTATIONS)} ways to break the manifests are found")
    return failed


class Objects:
    """Short ways to the parts of the objects."""

    def __init__(self, objects):
        self.all = objects

    def get(self, kind, name="chat"):
        return next(x for x in self.all if x["kind"] == kind and x["metadata"]["name"] == name)

    def spec(self, kind, name="chat"):
        return self.get(kind, name)["spec"]

    @property
    def pod(self):
        return next(x for x in self.all if x["kind"] in ("Deployment", "StatefulSet"))["spec"]["template"]["spec"]

    @property
    def container(self):
        return self.pod["containers"][0]

    def env(self, name):
        return next(entry for entry in self.container["env"] if entry["name"] == name)


def put(target, *path):
    """Sets the last but one step of a way to the last."""
    *way, key, value = path
    for step in way:
        target = target[step]
    target[key] = value


def rename_variable(objects, old, new):
    objects.env(old)["name"] = new


TOP = "(top)"
NODE = "chat-node"
LABEL = "app.kubernetes.io/name"
MUTATIONS = [
    # Schemas.
    (TOP, lambda o: put(o.spec("Deployment"), "replica", 3), "'replica' was unexpected"),
    (TOP, lambda o: put(o.spec("Deployment"), "replicas", "three"), "'three'"),
    (TOP, lambda o: put(o.container, "readinessProbe", "httpGet", "port", None), "Kubernetes 1.30"),
    (TOP, lambda o: put(o.get("PodDisruptionBudget"), "apiVersion", "policy/v1beta1"), "no schema"),
    ("cert-manager", lambda o: put(o.spec("Certificate", NODE), "dnsName", "x"), "'dnsName' was unexpected"),
    ("cert-manager", lambda o: put(o.spec("Issuer", "chat-ca"), "selfSigned", {}), "$.spec"),
    ("prometheus", lambda o: put(o.spec("ServiceMonitor"), "endpoints", 0, "interval", "15"), "interval"),
    ("prometheus", lambda o: put(o.spec("PrometheusRule"), "groups", 0, "rules", 0, "for", "2"), "for"),
    # Selectors.
    (TOP, lambda o: put(o.spec("Deployment"), "template", "metadata", "labels", LABEL, "x"), "its selector does not"),
    (TOP, lambda o: put(o.spec("Service"), "selector", LABEL, "x"), "Service/chat: its selector matches no pod"),
    (TOP, lambda o: put(o.spec("PodDisruptionBudget"), "selector", "matchLabels", LABEL, "x"), "PodDisruption"),
    (TOP, lambda o: put(o.spec("NetworkPolicy"), "podSelector", "matchLabels", LABEL, "x"), "matches no pod"),
    (TOP, lambda o: put(o.pod, "topologySpreadConstraints", 0, "labelSelector", {"matchLabels": {}}), "spread"),
    # Ports.
    (TOP, lambda o: put(o.spec("Service"), "ports", 0, "targetPort", "web"), "no port web"),
    (TOP, lambda o: put(o.spec("Service", "chat-peers"), "ports", 0, "port", 7947), "a headless service changes no"),
    (TOP, lambda o: put(o.spec("Service", "chat-peers"), "ports", 0, "protocol", "TCP"), "no port roomcast (TCP)"),
    (TOP, lambda o: put(o.env("ROOMCAST_LISTEN"), "value", "0.0.0.0:7000"), "ROOMCAST_LISTEN"),
    (TOP, lambda o: put(o.container, "ports", 2, "protocol", "TCP"), "ROOMCAST_LISTEN"),
    # Probes.
    (TOP, lambda o: put(o.container, "livenessProbe", "httpGet", "path", "/healthz"), "/healthz is no path"),
    (TOP, lambda o: put(o.container, "readinessProbe", "httpGet", "port", "http"), "is not the admin port"),
    (TOP, lambda o: o.container.pop("startupProbe"), "startupProbe is missing"),
    # Seeds.
    (
        TOP,
        lambda o: put(o.env("ROOMCAST_SEEDS"), "value", "chat-peers.$(POD_NAMESPACE).svc.cluster.local:7946"),
        "does not end with a dot",
    ),
    (TOP, lambda o: put(o.get("Service", "chat-peers"), "metadata", "name", "peers"), "not the name of a service"),
    (TOP, lambda o: o.spec("Service", "chat-peers").pop("publishNotReadyAddresses"), "has to be headless"),
    (TOP, lambda o: o.spec("Service", "chat-peers").pop("clusterIP"), "has to be headless"),
    # Stopping and updates.
    (TOP, lambda o: o.pod.update(terminationGracePeriodSeconds=10), "stopping may take"),
    (TOP, lambda o: put(o.container, "lifecycle", "preStop", "sleep", "seconds", 50), "stopping may take"),
    (TOP, lambda o: put(o.spec("Deployment"), "strategy", "rollingUpdate", "maxUnavailable", 1), "rolling update"),
    (TOP, lambda o: put(o.spec("PodDisruptionBudget"), "maxUnavailable", 0), "PodDisruptionBudget"),
    (TOP, lambda o: o.spec("Service").pop("sessionAffinity"), "keeps a client"),
    ("statefulset", lambda o: put(o.spec("StatefulSet"), "serviceName", "chat"), "no headless service"),
    # Settings.
    (TOP, lambda o: o.container["env"].reverse(), "is not set before it"),
    (TOP, lambda o: rename_variable(o, "ROOMCAST_ID", "ROOMCAST_NAME"), "ROOMCAST_NAME: nothing reads"),
    (TOP, lambda o: o.container["env"].append({"name": "ROOMCAST_X", "value": "1"}), "ROOMCAST_X: nothing reads"),
    (TOP, lambda o: o.container["args"].append("--verbose"), "no flag --verbose"),
    (TOP, lambda o: put(o.env("POD_IP"), "valueFrom", "fieldRef", "fieldPath", "status.hostIP"), "POD_IP is not"),
    # Security.
    (TOP, lambda o: o.pod.pop("automountServiceAccountToken"), "no token"),
    (TOP, lambda o: put(o.pod, "securityContext", "runAsUser", 0), "as root"),
    (TOP, lambda o: put(o.pod, "securityContext", "seccompProfile", "type", "Unconfined"), "seccomp"),
    (TOP, lambda o: put(o.container, "securityContext", "readOnlyRootFilesystem", False), "only read"),
    (TOP, lambda o: put(o.container, "securityContext", "capabilities", "add", ["NET_ADMIN"]), "capabilities"),
    (TOP, lambda o: o.container["resources"].pop("limits"), "limit of memory"),
    (TOP, lambda o: put(o.container, "image", "roomcast-chat:latest"), "fixed tag"),
    # Network policies.
    (TOP, lambda o: o.spec("NetworkPolicy")["ingress"].pop(0), "in from the other pods"),
    (TOP, lambda o: o.spec("NetworkPolicy")["egress"].pop(0), "out to the other pods"),
    (TOP, lambda o: put(o.spec("NetworkPolicy"), "egress", 0, "ports", 0, "protocol", "TCP"), "out to the other"),
    (TOP, lambda o: o.spec("NetworkPolicy")["egress"].pop(1), "UDP 53"),
    (TOP, lambda o: o.spec("NetworkPolicy")["egress"][1]["ports"].pop(1), "TCP 53"),
    (TOP, lambda o: o.spec("NetworkPolicy")["ingress"].pop(1), "clients"),
    ("prometheus", lambda o: o.all.remove(o.get("NetworkPolicy", "chat-metrics")), "the admin port"),
    # Secrets and certificates.
    (
        TOP,
        lambda o: o.all.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}),
        "never part of the manifests",
    ),
    (TOP, lambda o: o.container["env"].remove(o.env("ROOMCAST_SECRET")), "either ROOMCAST_SECRET"),
    (TOP, lambda o: (o.env("ROOMCAST_SECRET").pop("valueFrom"), put(o.env("ROOMCAST_SECRET"), "value", "0f")), "come"),
    (TOP, lambda o: o.env("ROOMCAST_ALSO_ACCEPT")["valueFrom"]["secretKeyRef"].pop("optional"), "that may lack it"),
    (
        "cert-manager",
        lambda o: o.container["env"].append({"name": "ROOMCAST_ALSO_ACCEPT", "value": "0f"}),
        "that may lack it",
    ),
    ("cert-manager", lambda o: put(o.env("ROOMCAST_CLUSTER"), "value", "other"), "node.<cluster>.roomcast"),
    ("cert-manager", lambda o: o.spec("Certificate", NODE)["usages"].remove("client auth"), "for clients"),
    ("cert-manager", lambda o: put(o.spec("Certificate", NODE), "secretName", "x"), "nothing makes its secret"),
    ("cert-manager", lambda o: put(o.spec("Certificate", NODE), "issuerRef", "name", "x"), "issuer is not there"),
    ("cert-manager", lambda o: put(o.spec("Certificate", "chat-ca"), "isCA", False), "of an authority"),
    ("cert-manager", lambda o: put(o.container, "volumeMounts", 0, "mountPath", "/tls"), "and mounted in /tls"),
    # From outside.
    (
        "ingress",
        lambda o: put(
            o.spec("Ingress"), "rules", 0, "http", "paths", 0, "backend", "service", "name", "chat-web"
        ),
        "no service chat-web",
    ),
    ("ingress", lambda o: o.get("Ingress")["metadata"].pop("annotations"), "keeps a client"),
    ("prometheus", lambda o: put(o.spec("ServiceMonitor"), "endpoints", 0, "path", "/prom"), "/prom is no path"),
    ("prometheus", lambda o: put(o.spec("ServiceMonitor"), "endpoints", 0, "port", "http"), "with a port http"),
    (
        "prometheus",
        lambda o: put(o.spec("ServiceMonitor"), "selector", "matchLabels", {LABEL: "chat"}),
        "selects 2 services",
    ),
]

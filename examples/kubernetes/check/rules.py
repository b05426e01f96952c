"""What must hold between the objects of one kustomization, beyond what their schemas say.

Each rule is a generator of errors and gets a `View`. `check` runs them all.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from product import Product
from render import name_of

# Kept free between the slowest stop and the moment when Kubernetes kills.
GRACE_MARGIN_SECONDS = 10
CERTIFICATE_VARIABLES = ("ROOMCAST_CERT_CA", "ROOMCAST_CERT", "ROOMCAST_CERT_KEY")


@dataclass
class View:
    """The objects, and what the rules ask of them again and again."""

    objects: list
    product: Product

    def of(self, *kinds):
        return [item for item in self.objects if item["kind"] in kinds]

    @cached_property
    def workload(self):
        workloads = self.of("Deployment", "StatefulSet")
        if len(workloads) != 1:
            raise LookupError(f"one Deployment or StatefulSet is needed, there are {len(workloads)}")
        return workloads[0]

    @property
    def template(self):
        return self.workload["spec"]["template"]

    @property
    def pod(self):
        return self.template["spec"]

    @property
    def container(self):
        return self.pod["containers"][0]

    @cached_property
    def env(self):
        """Plain values of variables; None for those that come from elsewhere."""
        return {entry["name"]: entry.get("value") for entry in self.container.get("env", [])}

    def selects_pod(self, labels):
        return bool(labels) and labels.items() <= self.template["metadata"].get("labels", {}).items()

    def port(self, wanted, protocol=None):
        """The container's port of that name or number."""
        for port in self.container.get("ports", []):
            named = wanted in (port.get("name"), port["containerPort"])
            if named and protocol in (None, port.get("protocol", "TCP")):
                return port
        return None

    def service(self, name):
        return next((item for item in self.of("Service") if item["metadata"]["name"] == name), None)


def check(objects, product):
    """Every error of every rule."""
    view = View(objects, product)
    try:
        return [error for rule in RULES for error in rule(view)]
    except LookupError as error:
        # A rule met something that is not there at all.
        return [f"broken beyond what the rules can tell: {type(error).__name__}: {error}"]


def selectors_match(view):
    spec = view.workload["spec"]
    if not view.selects_pod(spec["selector"].get("matchLabels")):
        yield f"{name_of(view.workload)}: its selector does not match the labels of its pods"
    for item in view.of("Service"):
        if not view.selects_pod(item["spec"].get("selector")):
            yield f"{name_of(item)}: its selector matches no pod"
    for item in view.of("PodDisruptionBudget"):
        if not view.selects_pod(item["spec"]["selector"].get("matchLabels")):
            yield f"{name_of(item)}: its selector matches no pod"
    for item in view.of("NetworkPolicy"):
        if not view.selects_pod(item["spec"]["podSelector"].get("matchLabels")):
            yield f"{name_of(item)}: its selector matches no pod"
    for spread in view.pod.get("topologySpreadConstraints", []):
        if not view.selects_pod(spread["labelSelector"].get("matchLabels")):
            yield f"topology spread by {spread['topologyKey']}: its selector matches no pod"


def ports_match(view):
    for item in view.of("Service"):
        headless = item["spec"].get("clusterIP") == "None"
        for port in item["spec"]["ports"]:
            target = view.port(port.get("targetPort", port["port"]), port.get("protocol", "TCP"))
            if target is None:
                yield f"{name_of(item)}: the container has no port {port.get('targetPort')} ({port.get('protocol')})"
            elif headless and target["containerPort"] != port["port"]:
                yield f"{name_of(item)}: a headless service changes no port, but {port['name']} has two numbers"
    for variable, name, protocol in (
        ("ROOMCAST_LISTEN", "roomcast", "UDP"),
        ("ROOMCAST_HTTP", "http", "TCP"),
        ("ROOMCAST_ADMIN", "admin", "TCP"),
    ):
        port = view.port(name, protocol)
        given = (view.env.get(variable) or "").rpartition(":")[2]
        if port is None or given != str(port["containerPort"]):
            yield f"{variable} has port {given!r}, the container's port {name} ({protocol}) is another or missing"


def probes_are_served(view):
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = view.container.get(kind, {}).get("httpGet")
        if get is None:
            yield f"{kind} is missing"
            continue
        if view.port(get["port"], "TCP") is not view.port("admin"):
            yield f"{kind}: port {get['port']} is not the admin port"
        yield from _served(view, kind, get["path"])


def _served(view, who, path):
    if path not in view.product.routes | view.product.planned:
        yield f"{who}: {path} is no path of the status endpoint, which has {sorted(view.product.routes)}"


def seeds_are_the_headless_service(view):
    seeds = view.env.get("ROOMCAST_SEEDS") or ""
    for seed in seeds.split(","):
        host, _, port = seed.rpartition(":")
        if not host.endswith("."):
            yield f"seed {seed}: its name does not end with a dot"
        name, _, rest = host.partition(".")
        service = view.service(name)
        if service is None or not rest.startswith("$(POD_NAMESPACE).svc."):
            yield f"seed {seed}: not the name of a service of this namespace"
            continue
        spec = service["spec"]
        if spec.get("clusterIP") != "None" or spec.get("publishNotReadyAddresses") is not True:
            yield f"{name_of(service)}: a seed has to be headless and to publish addresses that are not ready"
        if not any(str(p["port"]) == port and p.get("protocol") == "UDP" for p in spec["ports"]):
            yield f"seed {seed}: {name_of(service)} has no UDP port {port}"


def there_is_time_to_stop(view):
    grace = view.pod.get("terminationGracePeriodSeconds", 30)
    pause = view.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed = pause + view.product.stop_seconds + GRACE_MARGIN_SECONDS
    if grace < needed:
        yield f"terminationGracePeriodSeconds is {grace}, stopping may take {needed}"


def settings_are_read(view):
    text = " ".join(view.container.get("args", []))
    seen = set()
    for entry in view.container.get("env", []):
        for name in re.findall(r"\$\(([A-Z0-9_]+)\)", entry.get("value") or ""):
            if name not in seen:
                yield f"variable {entry['name']}: $({name}) is not set before it"
        seen.add(entry["name"])
    used = set(re.findall(r"\$\(([A-Z0-9_]+)\)", text))
    for name in sorted(used - seen):
        yield f"the arguments name $({name}), which is not set"
    for flag in re.findall(r"--[a-z-]+", text):
        if flag not in view.product.flags:
            yield f"the chat example has no flag {flag}"
    known = used | view.product.variables | view.product.planned
    for name in sorted(seen - known):
        if name.startswith("ROOMCAST_"):
            yield f"variable {name}: nothing reads it"
    for name, path in (("POD_NAME", "metadata.name"), ("POD_IP", "status.podIP")):
        entry = next((entry for entry in view.container.get("env", []) if entry["name"] == name), {})
        if entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath") != path:
            yield f"variable {name} is not {path}"


def pods_are_locked_down(view):
    pod, container = view.pod, view.container
    inner, outer = container.get("securityContext", {}), pod.get("securityContext", {})
    resources = container.get("resources", {})
    for holds, what in (
        (pod.get("automountServiceAccountToken") is False, "has no token of a service account"),
        (pod.get("enableServiceLinks") is False, "gets no variables of services"),
        (outer.get("runAsNonRoot") is True and outer.get("runAsUser", 0) > 0, "does not run as root"),
        (outer.get("seccompProfile", {}).get("type") == "RuntimeDefault", "has the runtime's seccomp profile"),
        (inner.get("readOnlyRootFilesystem") is True, "has a root file system that is only read"),
        (inner.get("allowPrivilegeEscalation") is False, "gains no privileges"),
        (inner.get("capabilities", {}) == {"drop": ["ALL"]}, "has no capabilities"),
        ({"cpu", "memory"} <= set(resources.get("requests", {})), "asks for CPU and memory"),
        ("memory" in resources.get("limits", {}), "has a limit of memory"),
        (not pod.get("hostNetwork") and len(pod["containers"]) == 1, "is alone in a network of its own"),
        (re.search(r":(?!latest$)[^/]+$", container["image"]), "has an image with a fixed tag"),
    ):
        if not holds:
            yield f"{name_of(view.workload)}: it does not hold that a pod {what}"


def updates_keep_the_cluster(view):
    spec = view.workload["spec"]
    if view.workload["kind"] == "Deployment":
        rolling = spec.get("strategy", {}).get("rollingUpdate", {})
        if (rolling.get("maxSurge"), rolling.get("maxUnavailable")) != (1, 0):
            yield "Deployment: a rolling update has to add one pod before it takes one away"
    else:
        service = view.service(spec["serviceName"])
        if service is None or service["spec"].get("clusterIP") != "None":
            yield f"StatefulSet: {spec['serviceName']} is no headless service"
    budgets = view.of("PodDisruptionBudget")
    if [budget["spec"].get("maxUnavailable") for budget in budgets] != [1]:
        yield "one PodDisruptionBudget with maxUnavailable 1 is needed"
    if not any(item["spec"].get("sessionAffinity") == "ClientIP" for item in view.of("Service")):
        yield "no service keeps a client at one pod"


def policies_let_pass(view):
    """Who may talk to whom: nodes to each other, to DNS, and clients to the nodes."""
    rules = {"ingress": [], "egress": []}
    for policy in view.of("NetworkPolicy"):
        for way, found in rules.items():
            if way.capitalize() in policy["spec"]["policyTypes"]:
                found.extend(policy["spec"].get(way, []))

    def passes(way, wanted, protocol, peer, key):
        port = view.port(wanted, protocol)
        numbers = {wanted} | ({port.get("name"), port["containerPort"]} if port else set())
        return any(
            any(p["port"] in numbers and p.get("protocol", "TCP") == protocol for p in rule.get("ports", []))
            and (key not in rule if peer is None else any(peer(one) for one in rule.get(key, [])))
            for rule in rules[way]
        )

    def own(peer):
        return set(peer) == {"podSelector"} and view.selects_pod(peer["podSelector"].get("matchLabels"))

    def dns(peer):
        return "kube-system" in peer.get("namespaceSelector", {}).get("matchLabels", {}).values()

    def other_namespace(peer):
        return "namespaceSelector" in peer

    for holds, what in (
        (passes("ingress", "roomcast", "UDP", own, "from"), "in from the other pods: UDP"),
        (passes("egress", "roomcast", "UDP", own, "to"), "out to the other pods: UDP"),
        (passes("egress", 53, "UDP", dns, "to"), "out to DNS: UDP 53"),
        (passes("egress", 53, "TCP", dns, "to"), "out to DNS: TCP 53"),
        (passes("ingress", "http", "TCP", None, "from"), "in from anywhere: clients"),
        (
            not view.of("ServiceMonitor") or passes("ingress", "admin", "TCP", other_namespace, "from"),
            "in from the monitoring: the admin port",
        ),
    ):
        if not holds:
            yield f"NetworkPolicy: does not let pass {what}"


def secrets_stay_outside(view):
    for item in view.of("Secret"):
        yield f"{name_of(item)}: a secret is never part of the manifests"
    entries = {entry["name"]: entry for entry in view.container.get("env", [])}
    secret, files = entries.get("ROOMCAST_SECRET"), [entries.get(name) for name in CERTIFICATE_VARIABLES]
    if (secret is None) == (None in files):
        yield "either ROOMCAST_SECRET or all three files of certificates have to be given"
    if secret and "secretKeyRef" not in secret.get("valueFrom", {}):
        yield "ROOMCAST_SECRET does not come from a Secret"
    also = entries.get("ROOMCAST_ALSO_ACCEPT")
    if also and (secret is None or not also.get("valueFrom", {}).get("secretKeyRef", {}).get("optional")):
        yield "ROOMCAST_ALSO_ACCEPT does not come from a Secret beside ROOMCAST_SECRET that may lack it"


def certificates_fit(view):
    issuers = {item["metadata"]["name"]: item for item in view.of("Issuer")}
    made = {item["spec"]["secretName"]: item for item in view.of("Certificate")}
    for item in view.of("Certificate"):
        if item["spec"]["issuerRef"]["name"] not in issuers:
            yield f"{name_of(item)}: its issuer is not there"
    for item in issuers.values():
        secret = item["spec"].get("ca", {}).get("secretName")
        if secret and not made.get(secret, {}).get("spec", {}).get("isCA"):
            yield f"{name_of(item)}: {secret} is not made by a certificate of an authority"
    paths = [view.env[name] for name in CERTIFICATE_VARIABLES if view.env.get(name)]
    if not paths:
        return
    mounts = {mount["name"]: mount["mountPath"] for mount in view.container.get("volumeMounts", [])}
    for volume in view.pod.get("volumes", []):
        certificate = made.get(volume.get("secret", {}).get("secretName"))
        if certificate is None:
            yield f"volume {volume['name']}: nothing makes its secret"
            continue
        spec, folder = certificate["spec"], mounts.get(volume["name"])
        if f"node.{view.env['ROOMCAST_CLUSTER']}.roomcast" not in spec.get("dnsNames", []):
            yield f"{name_of(certificate)}: it is not for node.<cluster>.roomcast"
        if not {"server auth", "client auth"} <= set(spec.get("usages", [])):
            yield f"{name_of(certificate)}: it has to be good for servers and for clients"
        if paths != [f"{folder}/{file}" for file in ("ca.crt", "tls.crt", "tls.key")]:
            yield f"the certificates are looked for in {paths}, and mounted in {folder}"
    if not view.pod.get("volumes"):
        yield "the certificates are not mounted"


def what_comes_from_outside_arrives(view):
    for item in view.of("Ingress"):
        for rule in item["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                service = view.service(backend["name"])
                if not service or backend["port"]["name"] not in [p["name"] for p in service["spec"]["ports"]]:
                    yield f"{name_of(item)}: there is no service {backend['name']} with port {backend['port']}"
        if item["metadata"].get("annotations", {}).get("nginx.ingress.kubernetes.io/affinity") != "cookie":
            yield f"{name_of(item)}: nothing keeps a client at one pod"
    for item in view.of("ServiceMonitor"):
        wanted = item["spec"]["selector"]["matchLabels"].items()
        services = [s for s in view.of("Service") if wanted <= s["metadata"].get("labels", {}).items()]
        if len(services) != 1:
            yield f"{name_of(item)}: selects {len(services)} services: each pod has to be scraped once"
        for endpoint in item["spec"]["endpoints"]:
            if not all(endpoint["port"] in [p["name"] for p in s["spec"]["ports"]] for s in services):
                yield f"{name_of(item)}: there is no service with a port {endpoint['port']}"
            yield from _served(view, name_of(item), endpoint.get("path", "/metrics"))


RULES = [
    selectors_match,
    ports_match,
    probes_are_served,
    seeds_are_the_headless_service,
    there_is_time_to_stop,
    settings_are_read,
    pods_are_locked_down,
    updates_keep_the_cluster,
    policies_let_pass,
    secrets_stay_outside,
    certificates_fit,
    what_comes_from_outside_arrives,
]

{{/* What all names start with. At most 40 characters: the longest suffix leaves room below 63. */}}
{{- define "qwen.base" -}}
{{- default .Release.Name .Values.fullnameOverride | trimSuffix "-operator" | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/*
What names of cluster-scoped objects, and of Roles in other namespaces, start with: those of two releases must not
meet. The dot, which no namespace has in its name, keeps release c in namespace a-b apart from release b-c in a.
*/}}
{{- define "qwen.clusterBase" -}}
{{- $name := printf "%s.%s" .Release.Namespace (include "qwen.base" .) -}}
{{- if gt (len $name) 46 -}}
{{- printf "%s-%s" ($name | trunc 37 | trimAll "-.") ($name | sha256sum | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "qwen.operatorServiceAccount" -}}
{{- default (printf "%s-operator" (include "qwen.base" .)) .Values.serviceAccount.operatorName -}}
{{- end -}}

{{- define "qwen.gatewayServiceAccount" -}}
{{- default (printf "%s-gateway" (include "qwen.base" .)) .Values.serviceAccount.gatewayName -}}
{{- end -}}

{{/* One per release, also of several in one namespace. */}}
{{- define "qwen.lease" -}}
{{- include "qwen.base" . }}-operator
{{- end -}}

{{- define "qwen.keysSecret" -}}
{{- default (printf "%s-gateway-keys" (include "qwen.base" .)) .Values.gateway.keysSecret -}}
{{- end -}}

{{/* The NetworkPolicy of this release in every namespace with QwenDeployments. */}}
{{- define "qwen.enginePolicy" -}}
{{- include "qwen.clusterBase" . }}-engines
{{- end -}}

{{/* Takes (dict "root" $ "component" "operator"). A NetworkPolicyPeer: the component's pods, seen from any namespace. */}}
{{- define "qwen.policyPeer" -}}
namespaceSelector:
  matchLabels: {kubernetes.io/metadata.name: {{ .root.Release.Namespace }}}
podSelector:
  matchLabels:
    {{- include "qwen.selectorLabels" . | nindent 4 }}
{{- end -}}

{{/* The list spec.ingress of qwen.enginePolicy. All of an engine is on one port. The page of its start has another. */}}
{{- define "qwen.engineIngress" -}}
{{- $ports := list (dict "protocol" "TCP" "port" 8000) -}}
{{- $peers := list -}}
{{- range $component := list "gateway" "operator" -}}
{{- $peers = append $peers (include "qwen.policyPeer" (dict "root" $ "component" $component) | fromYaml) -}}
{{- end -}}
{{- $rules := list (dict "from" (concat $peers .Values.networkPolicy.metricsFrom) "ports" $ports) -}}
{{- $operator := include "qwen.policyPeer" (dict "root" $ "component" "operator") | fromYaml -}}
{{- $rules = append $rules (dict "from" (list $operator) "ports" (list (dict "protocol" "TCP" "port" 8001))) -}}
{{- concat $rules .Values.networkPolicy.engines.extraIngress | toYaml -}}
{{- end -}}

{{/* "true" when the operator may read nodes. */}}
{{- define "qwen.readNodes" -}}
{{- ternary "true" "false" (or (empty .Values.watchNamespaces) .Values.rbac.readNodes) -}}
{{- end -}}

{{/* Takes (dict "root" $ "component" "operator"). What a selector may use: it never changes in an upgrade. */}}
{{- define "qwen.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Takes (dict "root" $ "component" "operator"). Labels of an object; the chart's own win over commonLabels. */}}
{{- define "qwen.labels" -}}
{{- $labels := include "qwen.selectorLabels" . | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/part-of" "qwen-operator" -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $labels "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- merge $labels .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* Takes (dict "root" $ "component" "operator"). Labels by which a Prometheus may choose, besides the usual ones. */}}
{{- define "qwen.monitoringLabels" -}}
{{- merge (include "qwen.labels" . | fromYaml) .root.Values.monitoring.labels | toYaml -}}
{{- end -}}

{{/* Takes (dict "root" $ "component" "operator"). No versions: a pod is not replaced because the chart is newer. */}}
{{- define "qwen.podLabels" -}}
{{- $labels := include "qwen.selectorLabels" . | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/part-of" "qwen-operator" -}}
{{- if eq .component "gateway" -}}
{{- $_ := set $labels "qwen-operator.dev/role" "gateway" -}}
{{- end -}}
{{- merge $labels .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* Takes (dict "registry" "mirror.example" "image" "docker.io/a/b:c"): the image in that registry, if one is given. */}}
{{- define "qwen.rehost" -}}
{{- $parts := splitList "/" .image -}}
{{- $host := first $parts -}}
{{- if and (gt (len $parts) 1) (or (contains "." $host) (contains ":" $host) (eq $host "localhost")) -}}
{{- $parts = rest $parts -}}
{{- end -}}
{{- ternary (printf "%s/%s" (trimSuffix "/" .registry) (join "/" $parts)) .image (ne .registry "") -}}
{{- end -}}

{{- define "qwen.image" -}}
{{- $name := include "qwen.rehost" (dict "registry" .Values.image.registry "image" .Values.image.repository) -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Takes (dict "root" $ "values" .Values.operator). Where a pod may run, and how its images are pulled. */}}
{{- define "qwen.placement" -}}
{{- $spec := dict -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" -}}
{{- with index $.values $key -}}
{{- $_ := set $spec $key . -}}
{{- end -}}
{{- end -}}
{{- with .root.Values.imagePullSecrets -}}
{{- $_ := set $spec "imagePullSecrets" . -}}
{{- end -}}
{{- if $spec -}}
{{- toYaml $spec -}}
{{- end -}}
{{- end -}}

{{/*
Takes (dict "root" $ "component" "operator" "values" .Values.operator). The selector is that of the component's pods;
by the hash, the pods of a new version are spread among themselves, whatever the old ones still occupy.
*/}}
{{- define "qwen.spread" -}}
{{- $own := dict "matchLabels" (include "qwen.selectorLabels" . | fromYaml) -}}
{{- $constraints := .values.topologySpreadConstraints -}}
{{- if not $constraints -}}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" -}}
{{- $soft := dict "maxSkew" 1 "topologyKey" $key "whenUnsatisfiable" "ScheduleAnyway" -}}
{{- $constraints = append $constraints (set $soft "matchLabelKeys" (list "pod-template-hash")) -}}
{{- end -}}
{{- end -}}
{{- $spread := list -}}
{{- range $constraints -}}
{{- $spread = append $spread (hasKey . "labelSelector" | ternary . (set (deepCopy .) "labelSelector" $own)) -}}
{{- end -}}
{{- dict "topologySpreadConstraints" $spread | toYaml -}}
{{- end -}}

{{/* The restricted profile. The group makes mounted Secrets readable. */}}
{{- define "qwen.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "qwen.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/*
Seconds: how long what stands before the gateway must wait. The body arrives, the request waits for a replica, the
answer takes its time. 10 more, so that the gateway's own refusal comes first.
*/}}
{{- define "qwen.patience" -}}
{{- $gateway := .Values.gateway -}}
{{- add $gateway.limits.bodyTimeoutSeconds $gateway.hold.maxSeconds $gateway.limits.requestTimeoutSeconds 10 -}}
{{- end -}}

{{/* The user's annotations of the Ingress, and those that its controller needs besides. */}}
{{- define "qwen.ingressAnnotations" -}}
{{- $ingress := .Values.gateway.ingress -}}
{{- $annotations := deepCopy $ingress.annotations -}}
{{- $patience := include "qwen.patience" . -}}
{{- $needed := dict -}}
{{- if eq $ingress.controller "ingress-nginx" -}}
{{- $prefix := "nginx.ingress.kubernetes.io/proxy-" -}}
{{- range $name := list "read-timeout" "send-timeout" -}}
{{- $_ := set $needed (print $prefix $name) $patience -}}
{{- end -}}
{{- range $name := list "buffering" "request-buffering" -}}
{{- $_ := set $needed (print $prefix $name) "off" -}}
{{- end -}}
{{- $_ := set $needed (print $prefix "body-size") (.Values.gateway.limits.bodyBytes | int64 | toString) -}}
{{- else if eq $ingress.controller "alb" -}}
{{- /* One annotation holds all attributes: others of the user must not take the time limit away. */ -}}
{{- $key := "alb.ingress.kubernetes.io/load-balancer-attributes" -}}
{{- $attributes := get $annotations $key -}}
{{- if not (contains "idle_timeout.timeout_seconds" $attributes) -}}
{{- $_ := set $annotations $key (printf "%s,idle_timeout.timeout_seconds=%s" (trimSuffix "," (trim $attributes)) $patience | trimPrefix ",") -}}
{{- end -}}
{{- $_ := set $needed "alb.ingress.kubernetes.io/target-type" "ip" -}}
{{- /* Without it an ALB asks for /, gets 404 and takes the pods for unhealthy. */ -}}
{{- $_ := set $needed "alb.ingress.kubernetes.io/healthcheck-path" "/health" -}}
{{- end -}}
{{- with merge $annotations $needed -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}

{{/*
Takes (dict "root" $ "component" "operator"). Of two pods one stays, of more all but one; and a pod that is not ready
never holds up the drain of its node.
*/}}
{{- define "qwen.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "qwen.base" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "qwen.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "qwen.selectorLabels" . | nindent 6 }}
{{- end -}}

{{/*
Takes (dict "root" $ "lists" LISTS "engineImage" IMAGE). The CEL variables with what tenants may ask for: the built-in
lists, those of the values, and those of the request's namespace.
*/}}
{{- define "qwen.allowedLists" -}}
{{- $tenancy := .root.Values.tenancy -}}
{{- $name := .engineImage | splitList "@" | first -}}
{{- $parts := splitList "/" $name -}}
{{- $repository := append (initial $parts) (last $parts | splitList ":" | first) | join "/" -}}
{{- $images := list .engineImage $repository (printf "%s:*" $repository) (printf "%s@*" $repository) -}}
{{- range $setting, $builtIn := .lists -}}
{{- $all := concat $builtIn (ternary $images list (eq $setting "images")) (index $tenancy $setting) | uniq | default list -}}
{{- $own := dict -}}
{{- range $namespace, $lists := $tenancy.namespaces -}}
{{- with index $lists $setting -}}
{{- $_ := set $own $namespace . -}}
{{- end -}}
{{- end }}
- name: allowed{{ substr 0 1 $setting | upper }}{{ substr 1 -1 $setting }}
  expression: {{ ternary (toJson $all) (printf "%s + (request.namespace in %s ? %s[request.namespace] : [])" (toJson $all) (toJson $own) (toJson $own)) (empty $own) | quote }}
{{- end -}}
{{- end -}}

{{/* Labels of everything: (dict "root" $ "part" NAME). Selectors use `app` alone, which never changes. */}}
{{- define "podshm.labels" -}}
app: {{ .part }}
app.kubernetes.io/name: podshm
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{/* Not empty where helm itself installs into a cluster; empty in what `helm template` prints for somebody else to apply. */}}
{{- define "podshm.byHelm" -}}
{{- if lookup "v1" "Namespace" "" "default" }}yes{{ end -}}
{{- end }}

{{/* An image: (dict "root" $ "name" NAME-IN-THE-REGISTRY "given" WHOLE-REFERENCE-OR-EMPTY). */}}
{{- define "podshm.image" -}}
{{- $images := .root.Values.images -}}
{{- if and (not .given) (eq $images.registry "registry.example") (include "podshm.byHelm" .root) -}}
{{- fail "images.registry: expected the registry that you have pushed podshm's images to (deploy/images/Containerfile), found registry.example, which is an example" -}}
{{- end -}}
{{- .given | default (printf "%s/%s:%s" $images.registry .name ($images.tag | default .root.Chart.AppVersion)) -}}
{{- end }}

{{/* Which nodes: nothing of ours runs on Windows. */}}
{{- define "podshm.nodeSelector" -}}
{{- toYaml (merge dict (. | default dict) (dict "kubernetes.io/os" "linux")) -}}
{{- end }}

{{/* What `restricted` asks of a container. */}}
{{- define "podshm.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

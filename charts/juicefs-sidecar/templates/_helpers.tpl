{{/* Labels of every object; the argument is the list (root, component). */}}
{{- define "juicefs.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: juicefs-sidecar
{{ include "juicefs.selector" . }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels by which workloads find their pods; never changed, selectors are immutable. */}}
{{- define "juicefs.selector" -}}
app.kubernetes.io/name: juicefs-sidecar
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Reference of an image; the argument is the list (root, entry of .Values.images). */}}
{{- define "juicefs.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What operator and webhook may do on their node: nothing. The user is the image's: nobody. */}}
{{- define "juicefs.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65534
runAsGroup: 65534
fsGroup: 65534
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "juicefs.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Scheduling of a workload; the argument is its section of the values. */}}
{{- define "juicefs.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with .nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* ServiceAccount of a component; the argument is the list (root, component, its section of the values). */}}
{{- define "juicefs.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: juicefs-{{ index . 1 }}
  namespace: {{ (index . 0).Release.Namespace }}
  labels:
    {{- include "juicefs.labels" . | nindent 4 }}
  {{- with (index . 2).serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}

{{/* Cluster-wide rights of a component; the argument is the list (root, component). */}}
{{- define "juicefs.clusterRoleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: juicefs-{{ index . 1 }}
  labels:
    {{- include "juicefs.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: juicefs-{{ index . 1 }}
subjects:
  - kind: ServiceAccount
    name: juicefs-{{ index . 1 }}
    namespace: {{ (index . 0).Release.Namespace }}
{{- end }}

{{/* Rights of a component in the release's namespace; the argument is the list (root, component). */}}
{{- define "juicefs.roleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: juicefs-{{ index . 1 }}
  namespace: {{ (index . 0).Release.Namespace }}
  labels:
    {{- include "juicefs.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: juicefs-{{ index . 1 }}
subjects:
  - kind: ServiceAccount
    name: juicefs-{{ index . 1 }}
    namespace: {{ (index . 0).Release.Namespace }}
{{- end }}

{{/* Metadata of a workload's pods below `template:`; the argument is the list (root, component, its section of the values).
Without the chart's version: a release that changes nothing for a workload must not restart it. */}}
{{- define "juicefs.podMetadata" -}}
{{- $root := index . 0 -}}{{- $section := index . 2 -}}
labels:
  {{- include "juicefs.selector" . | nindent 2 }}
  {{- with merge (dict) $section.podLabels $root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $section.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

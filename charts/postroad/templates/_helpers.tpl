{{- define "postroad.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "postroad.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}-operator
{{- end -}}

{{- define "postroad.selector" -}}
app.kubernetes.io/name: postroad-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "postroad.labels" -}}
{{ include "postroad.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

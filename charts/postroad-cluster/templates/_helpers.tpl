{{- define "postroad-cluster.labels" -}}
app.kubernetes.io/name: postroad
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- /* Whom helm test writes to; empty: it has nobody. */ -}}
{{- define "postroad-cluster.recipient" -}}
{{- $to := .Values.test.to -}}
{{- range $name, $spec := .Values.domains -}}
{{- if and (not $to) (hasKey $spec "inbound") -}}
{{- $to = printf "postmaster@%s" $spec.domain -}}
{{- end -}}
{{- end -}}
{{- $to -}}
{{- end -}}

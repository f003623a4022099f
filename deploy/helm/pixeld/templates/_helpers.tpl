{{- define "pixeld.name" -}}
{{- if not (regexMatch "^[a-z]" .Release.Name) }}{{ fail (printf "a Service's name begins with a letter, the release's %q does not" .Release.Name) }}{{ end }}
{{- if contains "pixeld" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-pixeld" (.Release.Name | trunc 43 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "pixeld.selector" -}}
app.kubernetes.io/name: pixeld
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pixeld.labels" -}}
{{ include "pixeld.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "pixeld.image" -}}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{- define "pixeld.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "pixeld.name" .) }}
{{- end }}

{{- /* Of every container here: what Kubernetes calls restricted, and a root that cannot be written. */}}
{{- define "pixeld.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "pixeld.probe" -}}
grpc: {port: 50052, service: {{ .service | quote }}}
periodSeconds: {{ .periodSeconds }}
timeoutSeconds: {{ .timeoutSeconds }}
failureThreshold: {{ .failureThreshold }}
{{- end }}

{{- /* The configuration file. Numbers of YAML reach here as floats: 256.0 is written as 256. */}}
{{- define "pixeld.config" -}}
{{- $own := dict
  "server" (dict "drain_timeout" (printf "%ds" (int .Values.drain.timeoutSeconds)))
  "models" (dict "embedded" .Values.models.embedded)
  "health" (dict "listen" "0.0.0.0:50052")
  "metrics" (dict "listen" (ternary "0.0.0.0:9464" "" .Values.metrics.enabled)) }}
{{- regexReplaceAll "(?m)^( *[a-z_]+ = -?[0-9]+)\\.0$" (toToml (mergeOverwrite (deepCopy .Values.config) $own)) "${1}" }}
{{- end }}

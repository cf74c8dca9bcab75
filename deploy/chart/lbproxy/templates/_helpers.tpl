{{- define "lbproxy.labels" -}}
app.kubernetes.io/name: lbproxy
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: proxy
{{- end }}

{{- /* Those of the selector never change: a DaemonSet's selector cannot. */}}
{{- define "lbproxy.selector" -}}
app.kubernetes.io/name: lbproxy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lbproxy.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{- /* The configuration file: what values say, and what they decide elsewhere. */}}
{{- define "lbproxy.config" -}}
{{- $own := dict "apiVersion" "lbproxy.io/v1alpha1" "kind" "ProxyConfiguration" "bpffs" .Values.paths.bpffs "stateDir" .Values.paths.state -}}
{{- if .Values.scripts.hostPath }}{{- $_ := set $own "healthScriptDir" .Values.scripts.hostPath }}{{- end -}}
{{- range $field, $_ := $own }}
{{- if hasKey $.Values.config $field }}{{- fail (printf "config.%s: say it with paths or scripts, which mount it too" $field) }}{{- end }}
{{- end -}}
{{- range $field := list "nodeName" "kubeconfig" "manifests" "config" }}
{{- if hasKey $.Values.config $field }}{{- fail (printf "config.%s: is not for all nodes of a cluster" $field) }}{{- end }}
{{- end -}}
{{- toYaml (merge $own .Values.config) -}}
{{- end }}

{{- /* What needs new pods when it changes: the address of the API server, and the
fields of the configuration that lbproxy does not take over while it runs. */}}
{{- define "lbproxy.restart" -}}
{{- $fields := include "lbproxy.config" . | fromYaml -}}
{{- range .Files.Lines "files/reloadable-fields" }}{{- $fields = omit $fields . }}{{- end -}}
{{- dict "apiServer" .Values.apiServer "config" $fields | toJson | sha256sum -}}
{{- end }}

{{- /* In the environment: whatever is run in the pod reads it, too. */}}
{{- define "lbproxy.nodeName" -}}
- name: LBPROXY_NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end }}

{{- /* The port of /livez and /readyz; empty if there is no server. */}}
{{- define "lbproxy.healthPort" -}}
{{- $addr := .Values.config.healthzBindAddress -}}
{{- if not (hasKey .Values.config "healthzBindAddress") }}10256
{{- else if regexMatch ":[0-9]+$" $addr }}{{ regexFind "[0-9]+$" $addr }}
{{- else if $addr }}10256{{ end -}}
{{- end }}

{{- /* One list for the program and for the documentation: docs/SECURITY.md. */}}
{{- define "lbproxy.capabilities" -}}
{{- $list := list "BPF" "NET_ADMIN" "NET_RAW" "PERFMON" -}}
{{- if .Values.closePodSockets }}{{- $list = concat $list (list "SYS_ADMIN" "SYS_PTRACE") }}{{- end -}}
{{- if .Values.scripts.hostPath }}{{- $list = concat $list (list "KILL" "SETGID" "SETPCAP" "SETUID" "SYS_ADMIN") }}{{- end -}}
{{- $list | sortAlpha | uniq | toYaml -}}
{{- end }}

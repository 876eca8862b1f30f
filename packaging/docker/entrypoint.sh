#!/bin/sh
# What a container of the fleet does: `coordinator`, or `agent`.
#
# The coordinator puts a token for each of $FLEETWRIGHT_HOSTS into the folder that it shares with the agents; each agent
# enrols with its own, once. A host is written NAME or NAME:KEY=VALUE,KEY=VALUE, with the labels that its token gives it.
set -eu
umask 077

tokens=/run/fleetwright/tokens

case "${1:-}" in
coordinator)
    fleetwright operator-key export --if-missing
    fleetwright coordinator --listen 0.0.0.0:7117 --fleet "${FLEETWRIGHT_FLEET:-compose}" &
    coordinator=$!
    trap 'kill -TERM "$coordinator"' TERM INT
    mkdir -p "$tokens"
    # It answers once it has made the fleet.
    until fleetwright hosts list --output json >/dev/null 2>&1; do
        kill -0 "$coordinator" || { wait "$coordinator"; exit; }
        sleep 0.2
    done
    # Whatever is wrong with a host is said, and ends the container.
    ended() { kill -TERM "$coordinator"; wait "$coordinator" || true; exit 1; }
    # No name or label is a pattern of files.
    set -f
    for written in ${FLEETWRIGHT_HOSTS:-}; do
        host=${written%%:*}
        labels=
        [ "$host" = "$written" ] || labels=${written#*:}
        set -- --address "$host"
        for label in $(echo "$labels" | tr , ' '); do set -- "$@" --label "$label"; done
        # One that was used, or is still there, is not made again.
        [ -e "$tokens/$host.json.made" ] && continue
        fleetwright hosts token "$host" --expires-in 7d "$@" --output json >"$tokens/$host.json.new" || ended
        mv "$tokens/$host.json.new" "$tokens/$host.json"
        touch "$tokens/$host.json.made"
    done
    set +f
    # The first wait ends with a signal, the second with the coordinator.
    wait "$coordinator" || wait "$coordinator"
    ;;
agent)
    name=$(hostname)
    if [ ! -e /var/lib/fleetwright-agent/identity/agent.json ]; then
        until [ -s "$tokens/$name.json" ]; do sleep 0.2; done
        word() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$tokens/$name.json"; }
        fleetwright-agent enroll --coordinator "${FLEETWRIGHT_COORDINATOR_ADDRESS:-coordinator:7117}" \
            --ca-fingerprint "$(word ca_fingerprint)" --token-file - <<TOKEN
$(word token)
TOKEN
    fi
    exec fleetwright-agent run
    ;;
*)
    exec "$@"
    ;;
esac

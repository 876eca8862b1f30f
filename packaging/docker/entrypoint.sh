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
    for written in ${FLEETWRIGHT_HOSTS:-}; do
        host=${written%%:*}
        labels=
        [ "$host" = "$written" ] || labels=${written#*:}
        set -- --address "$host"
        for label in $(echo "$labels" | tr , ' '); do set -- "$@" --label "$label"; done
        # One that was used, or is still there, is not made again.
        [ -e "$tokens/$host.made" ] && continue
        until fleetwright hosts token "$host" --expires-in 7d "$@" --output json >"$tokens/$host.new" 2>/dev/null; do
            kill -0 "$coordinator"
            sleep 0.2
        done
        mv "$tokens/$host.new" "$tokens/$host"
        touch "$tokens/$host.made"
    done
    # The first wait ends with a signal, the second with the coordinator.
    wait "$coordinator" || wait "$coordinator"
    ;;
agent)
    name=$(hostname)
    if [ ! -e /var/lib/fleetwright-agent/identity/agent.json ]; then
        until [ -s "$tokens/$name" ]; do sleep 0.2; done
        word() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$tokens/$name"; }
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

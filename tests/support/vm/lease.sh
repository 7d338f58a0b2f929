#!/bin/sh
# What udhcpc calls: apply the lease, and print what the server said as NAME=VALUE.

case $1 in
deconfig)
    ip -4 address flush dev "$interface"
    ;;
bound | renew)
    ip address add "$ip/$mask" dev "$interface"
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    if [ -n "$staticroutes" ]; then
        # RFC 3442: these replace the router. A gateway 0.0.0.0 means that the destination is on the link.
        set -- $staticroutes
        while [ $# -ge 2 ]; do
            if [ "$2" = 0.0.0.0 ]; then
                ip route add "$1" dev "$interface"
            else
                ip route add "$1" via "$2" dev "$interface"
            fi
            shift 2
        done
    else
        for gateway in $router; do
            ip route add default via "$gateway" dev "$interface"
        done
    fi
    [ -z "$hostname" ] || hostname "$hostname"
    {
        for server in $dns; do
            echo "nameserver $server"
        done
        [ -z "${search:-$domain}" ] || echo "search ${search:-$domain}"
    } >/etc/resolv.conf
    env | grep -E '^(ip|mask|subnet|router|dns|search|domain|hostname|mtu|lease|serverid|staticroutes)='
    ;;
esac

// `portway instances`: virtual machines whose ports can be forwarded.
#include "client/commands/parts.h"

#include "client/output.h"
#include "client/request.h"

namespace portway {
namespace {

const Parameter kSession{
    .name = "--session-id",
    .help =
        "Act on this session only. This makes a repeated command safe: without it, a retry could "
        "reach the session of the next machine.",
    .value = "UUID",
    .place = Place::kQuery,
    .field = "session_id"};

}  // namespace

std::vector<Command> instance_commands() {
  return {
      {.noun = "instances",
       .verb = "list",
       .summary = "List the instances that your key may see.",
       .method = "GET",
       .path = "/instances",
       .paged = true,
       .envelope = "instances",
       .columns = {{"ID", "id"},
                   {"STATE", "state"},
                   {"GUEST ADDRESS", "guest_addresses"},
                   {"TAP", "tap"},
                   {"OWNER", "owner"},
                   {"PROFILE", "profile"},
                   {"FORWARDS", "port_forwards.current"},
                   {"LIMIT", "port_forwards.limit"},
                   {"SOURCE MODE", "source_mode"}},
       .show = show_list,
       .run = run_request},
      {.noun = "instances",
       .verb = "get",
       .summary = "Show one instance.",
       .parameters = {kInstance},
       .method = "GET",
       .path = "/instances/{INSTANCE}",
       .envelope = "instance",
       .show = show_resource,
       .run = run_request},
      {.noun = "instances",
       .verb = "put",
       .summary = "Report that the instance's VM is running; a different address, tap or device starts a new "
                  "session "
                  "and ends the forwards of the old one (admin).",
       .parameters =
           {kInstance,
            {.name = "--guest-address",
             .help = "The guest's address behind the tap. Give it twice for IPv4 and IPv6: each client "
                     "is connected to the address of its own family.",
             .value = "ADDRESS",
             .place = Place::kBody,
             .field = "guest_addresses",
             .required = true,
             .repeatable = true},
            {.name = "--tap",
             .help =
                 "The network device that leads to the guest. Without it, --vmm-pid alone ends the session, "
                 "and --device says what leads to the guest.",
             .value = "DEVICE",
             .place = Place::kBody,
             .field = "tap"},
            {.name = "--device",
             .help = "What leads to the guest, if not its tap: an interface such as the tap's bridge, or "
                     "\"none\" "
                     "to follow the node's routes.",
             .value = "DEVICE",
             .place = Place::kBody,
             .field = "device"},
            {.name = "--netns",
             .help =
                 "The network namespace in which the guest is reached: a path such as /run/netns/NAME, or "
                 "\"vmm_pid\" for that of the process --vmm-pid.",
             .value = "NETNS",
             .place = Place::kBody,
             .field = "netns"},
            {.name = "--tap-netns",
             .help =
                 "The network namespace of the tap, if it is another one: as --netns, or \"node\" for the "
                 "node's own.",
             .value = "NETNS",
             .place = Place::kBody,
             .field = "tap_netns"},
            {.name = "--target",
             .help =
                 "Where forwards lead that name no target of their own: a Unix socket of the node, or the "
                 "guest's vsock through the socket of its Firecracker.",
             .value = "KIND",
             .place = Place::kBody,
             .field = "target.kind",
             .choices = {"tcp", "unix", "firecracker_vsock"}},
            {.name = "--socket",
             .help = "The absolute path of that socket, below one of guests.socket_directories.",
             .kind = Kind::kFile,
             .value = "FILE",
             .place = Place::kBody,
             .field = "target.socket"},
            {.name = "--vsock-port",
             .help = "The vsock port of forwards that name no GUEST_PORT, with firecracker_vsock.",
             .kind = Kind::kCount,
             .value = "N",
             .place = Place::kBody,
             .field = "target.port"},
            {.name = "--owner",
             .help = "The owner, whose keys see the instance.",
             .place = Place::kBody,
             .field = "owner",
             .required = true},
            {.name = "--profile",
             .help = "The name of a set of limits in the node's configuration; \"default\" when absent.",
             .place = Place::kBody,
             .field = "profile"},
            {.name = "--vmm-pid",
             .help = "The process id of the VMM: when it exits, the session ends.",
             .kind = Kind::kCount,
             .value = "PID",
             .place = Place::kBody,
             .field = "vmm_pid"},
            kSession},
       .method = "PUT",
       .path = "/instances/{INSTANCE}",
       .envelope = "instance",
       .show = show_resource,
       .run = run_request},
      {.noun = "instances",
       .verb = "update",
       .summary = "Change the guest address of a running instance, whose forwards and host ports stay; "
                  "connections to the old address are reset (admin).",
       .parameters = {kInstance,
                      {.name = "--guest-address",
                       .help = "The guest's only address, or the IPv4 one of two.",
                       .value = "ADDRESS",
                       .place = Place::kBody,
                       .field = "guest_address"},
                      {.name = "--guest-address-v6",
                       .help = "The guest's IPv6 address beside an IPv4 one.",
                       .value = "ADDRESS",
                       .place = Place::kBody,
                       .field = "guest_address_v6"},
                      {.name = "--remove",
                       .help = "The address that the guest no longer has.",
                       .value = "WHAT",
                       .place = Place::kBodyNull,
                       .choices = {"guest-address-v6"}},
                      kSession},
       .method = "PATCH",
       .path = "/instances/{INSTANCE}",
       .envelope = "instance",
       .show = show_resource,
       .run = run_request},
      {.noun = "instances",
       .verb = "stop",
       .summary = "Report that the VM has stopped: its forwards end and their connections are reset (admin).",
       .parameters = {kInstance, kSession},
       .method = "POST",
       .path = "/instances/{INSTANCE}/stop",
       .run = run_request},
      {.noun = "instances",
       .verb = "delete",
       .summary = "Delete an instance, its forwards and their connections (admin).",
       .parameters = {kInstance, kSession},
       .method = "DELETE",
       .path = "/instances/{INSTANCE}",
       .run = run_request},
  };
}

}  // namespace portway

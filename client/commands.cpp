// The table of commands, nouns and global options. Each resource has its rows in commands/; paths and members
// are those of the REST API.
#include <array>

#include "client/command.h"
#include "client/commands/parts.h"

namespace portway {

std::span<const Command> commands() {
  static const std::vector<Command> all = [] {
    std::vector<Command> table;
    for (auto part : {instance_commands, forward_commands, connection_commands, key_commands, node_commands,
                      fleet_commands, context_commands}) {
      for (Command& command : part()) table.push_back(std::move(command));
    }
    return table;
  }();
  return all;
}

std::span<const Noun> nouns() {
  static constexpr auto kNouns = std::to_array<Noun>({
      {"instances", "Virtual machines whose ports can be forwarded."},
      {"forwards", "Host ports that lead to an instance's ports."},
      {"connections", "A forward's current and recently closed connections."},
      {"keys", "API keys."},
      {"profiles", "Named sets of limits for instances."},
      {"node", "The daemon's process on this node."},
      {"nodes", "The nodes of a fleet, at its gateway.", "list"},
      {"config", "The daemon's configuration."},
      {"context", "Servers with a name, in a file of yours."},
  });
  return kNouns;
}

std::span<const Parameter> global_parameters() {
  static const std::vector<Parameter> parameters = {
      {.name = "--server",
       .help = "Of a node or a gateway: http://HOST:PORT, https://HOST[:PORT][/PATH] or unix:/PATH.",
       .value = "URL",
       .fallback = "http://127.0.0.1:8080",
       .environment = "PORTWAY_SERVER"},
      {.name = "--context",
       .help = "The server, key and certificates of this context (portway context list), instead of those of "
               "the current "
               "one.",
       .value = "NAME",
       .environment = "PORTWAY_CONTEXT"},
      {.name = "--key-file",
       .help = "The file with the API key. The key itself can be given in PORTWAY_API_KEY, but never on the "
               "command line, where others could read it.",
       .kind = Kind::kFile,
       .value = "FILE",
       .environment = "PORTWAY_API_KEY_FILE"},
      {.name = "--output",
       .help = "table; wide: a table with more columns; json or yaml: the API's answers with all their "
               "members, and "
               "in \"etag\" their ETag. With these two, a problem document of the API goes to standard error "
               "as JSON in one "
               "line.",
       .value = "FORMAT",
       .letter = 'o',
       .fallback = "table",
       .choices = {"table", "wide", "json", "yaml"}},
      {.name = "--wide", .help = "The same as --output wide.", .kind = Kind::kFlag},
      {.name = "--ca",
       .help = "Trust the certificate authorities in this PEM file instead of the system's.",
       .kind = Kind::kFile,
       .value = "FILE",
       .environment = "PORTWAY_CA_FILE"},
      {.name = "--cert",
       .help = "The client's certificate chain (PEM), for a server that requires one.",
       .kind = Kind::kFile,
       .value = "FILE",
       .environment = "PORTWAY_CERT_FILE"},
      {.name = "--cert-key",
       .help = "The private key of --cert (PEM); not needed if it is in the same file.",
       .kind = Kind::kFile,
       .value = "FILE",
       .environment = "PORTWAY_CERT_KEY_FILE"},
      {.name = "--timeout",
       .help = "Seconds without progress after which a request fails.",
       .kind = Kind::kCount,
       .value = "SECONDS",
       .fallback = "30"},
  };
  return parameters;
}

}  // namespace portway

// Contexts: servers with a name, in a file of the user's. It is TOML:
//
//     current = "compute-1"
//
//     [contexts.compute-1]
//     server = "https://compute-1.example"
//     key_file = "compute-1.key"      # relative to this file
//     ca = "ca.pem"
//
// The client reads it and changes nothing in it but `current`.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "client/command.h"

namespace portway {

/// A server and what to show it. Files are absolute paths; empty: not given.
struct ServerContext {
  std::string name = {};
  std::string server = {};
  std::string key_file = {};
  std::string ca = {};
  std::string cert = {};
  std::string cert_key = {};
};

struct Contexts {
  std::string path = {};                // of the file; empty if there is no place for one
  std::string current = {};             // the name of one of `all`; empty: none
  std::vector<ServerContext> all = {};  // by name
};

/// From $PORTWAY_CONTEXTS, else $XDG_CONFIG_HOME/portway/contexts.toml, else ~/.config/portway/contexts.toml.
/// None if there is no such file; kUsage, with the line and the remedy, if it is wrong.
Outcome<Contexts> read_contexts(const Environment& environment);

/// Makes `name` the current context, in the file, whose other lines stay as they are.
Outcome<ServerContext> use_context(const Environment& environment, const std::string& name);

/// The context of this name. kUsage, with the names that there are.
Outcome<ServerContext> find_context(const Contexts& contexts, const std::string& name);

/// The context that is in use: that of --context or PORTWAY_CONTEXT, else the current one, if there is one.
Outcome<std::optional<ServerContext>> context_in_use(const Invocation& invocation);

/// The arguments with what the context in use says: options come first, then a context that --context names,
/// then the environment, then another context, then defaults. A context that --context does not name is left
/// out if the server is given by other means: its key is not for that server.
Outcome<Arguments> with_context(const Invocation& invocation);

}  // namespace portway

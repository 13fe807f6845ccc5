// `portway context`: servers with a name.
#include "client/commands/parts.h"

#include "client/context_commands.h"

namespace portway {

std::vector<Command> context_commands() {
  const Parameter context{.name = "CONTEXT", .help = "The context's name."};
  Parameter optional_context = context;
  optional_context.optional = true;
  optional_context.help = "The context's name; without it, the one in use.";
  return {
      {.noun = "context",
       .verb = "list",
       .summary = "List the contexts of your file, without contacting a server.",
       .envelope = "contexts",
       .columns = {{"IN USE", "in_use"},
                   {"NAME", "name"},
                   {"SERVER", "server"},
                   {"KEY FILE", "key_file"},
                   {"CA", "ca", true},
                   {"CERT", "cert", true},
                   {"CERT KEY", "cert_key", true}},
       .run = run_context_list},
      {.noun = "context",
       .verb = "use",
       .summary = "Use a context from now on, for commands that name no other one and no server.",
       .parameters = {context},
       .run = run_context_use},
      {.noun = "context",
       .verb = "show",
       .summary = "Show a context.",
       .parameters = {optional_context},
       .envelope = "context",
       .run = run_context_show},
  };
}

}  // namespace portway

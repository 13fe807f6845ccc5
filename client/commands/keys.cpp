// `portway keys`: API keys.
#include "client/commands/parts.h"

#include "client/output.h"
#include "client/request.h"

namespace portway {

std::vector<Command> key_commands() {
  return {
      {.noun = "keys",
       .verb = "create",
       .summary = "Create an API key and print its secret, which is not shown again (admin).",
       .parameters = {{.name = "--owner",
                       .help = "The owner, whose instances the key sees.",
                       .place = Place::kBody,
                       .field = "owner",
                       .required = true},
                      {.name = "--role",
                       .help = "A tenant's key sees its owner's instances; an admin's key sees all.",
                       .value = "ROLE",
                       .place = Place::kBody,
                       .field = "role",
                       .fallback = "tenant",
                       .choices = {"tenant", "admin"}}},
       .method = "POST",
       .path = "/api-keys",
       .envelope = "api_key",
       .show = show_secret,
       .run = run_request},
      {.noun = "keys",
       .verb = "list",
       .summary = "List the API keys, without their secrets (admin).",
       .method = "GET",
       .path = "/api-keys",
       .paged = true,
       .envelope = "api_keys",
       .columns = {{"ID", "id"}, {"ROLE", "role"}, {"OWNER", "owner"}, {"CREATED", "created_at"}},
       .show = show_list,
       .run = run_request},
      {.noun = "keys",
       .verb = "delete",
       .summary = "Delete an API key; it is refused from then on (admin).",
       .parameters = {{.name = "KEY", .help = "The key's id, not its secret.", .place = Place::kPath}},
       .method = "DELETE",
       .path = "/api-keys/{KEY}",
       .run = run_request},
  };
}

}  // namespace portway

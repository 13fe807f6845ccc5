// Idempotency-Key: the same request with the same key gets the first answer again, also after a crash, as
// long as everything that the answer promises still exists.
//
// Control thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <optional>

#include "api/http/message.h"
#include "api/resources.h"
#include "base/error.h"
#include "control/store.h"

namespace portway {

/// The request's Idempotency-Key and fingerprint, still without an answer; nothing if it has no key.
Result<std::optional<IdempotentAnswer>> idempotent_request(const Call& call);

/// The first answer to `asked`, a request about the instance call.path[0]; nothing if its key is new.
/// kIdempotencyKeyReused if the key came with another request, kIdempotentAnswerGone if something that the
/// answer promises has ended.
boost::asio::awaitable<Result<std::optional<Response>>> find_replay(const ApiContext& api, const Call& call,
                                                                    IdempotentAnswer asked);

/// `asked` with its answer, to be stored.
IdempotentAnswer with_answer(IdempotentAnswer asked, const Response& response);

/// Whether find_replay() made it.
bool is_replay(const Response& response);

}  // namespace portway

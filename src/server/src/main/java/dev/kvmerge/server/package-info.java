/** An HTTP server with OpenAI's and llama-server's endpoints over the engine's bounded sessions. */
package dev.kvmerge.server;

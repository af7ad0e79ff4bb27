/** Generating: an engine over a model, and bounded sessions that read, generate and chat. */
package dev.kvmerge.engine;

/** A model's own chat template: Jinja as transformers has it, run by Jinjava. */
package dev.kvmerge.chat;
